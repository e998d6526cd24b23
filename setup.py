"""Packages `iopfl` (under apps/, where MONAI Label looks for apps) and `fl_bridge`."""

from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent

setup(
    name="iopfl",
    version="0.1.0",
    description="Personalized federated segmentation in MONAI Label: inside the federation, and outside it",
    long_description=(here / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    package_dir={"": "apps", "fl_bridge": "fl_bridge"},
    packages=find_packages("apps", include=["iopfl", "iopfl.*"])
    + find_packages(".", include=["fl_bridge", "fl_bridge.*"]),
    package_data={
        "iopfl": ["py.typed"],
        "iopfl.core": ["tasks/*.yaml"],
        "iopfl.access": ["static/*"],
        "iopfl.web": ["static/*", "static/ohif/*"],
        "fl_bridge": ["py.typed"],
    },
    extras_require={"half": ["bitsandbytes>=0.45"]},
    install_requires=[
        "torch>=2.6",
        "monai>=1.5",
        "monailabel==0.8.5",
        "numpy<2",
        "nibabel>=5",
        "pynrrd>=1",
        "Pillow>=10",
        "safetensors>=0.4",
        "PyYAML>=6",
        "cryptography>=42",
        "tqdm>=4",
        "matplotlib>=3.8",
        "fastapi>=0.110",
        "uvicorn>=0.29",
        "pydicom>=3",
        "pynetdicom>=3.0.4,<3.1",  # dimse/sockets.py, messages.py and acceptor.py rest on what is inside it
        "highdicom>=0.27",
        "python-gdcm>=3.0.10",
        "dicomweb-client>=0.60",
        "argon2-cffi>=23",
        "Authlib>=1.6",
        "psutil>=5",
        "PyJWT>=2.8",
        "python-multipart>=0.0.9",
        "requests>=2",
        "httpx>=0.27",
        "retrying>=1.3",
        "SimpleITK>=2.3",
        "scipy>=1.11",
        "itk>=5.4",
        "tensorboard>=2.16",
        "nvflare>=2.9,<2.10",
    ],
    entry_points={"console_scripts": ["iopfl=iopfl.cli:main", "fl-bridge=fl_bridge.cli:main"]},
)
