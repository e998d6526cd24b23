"""For tools that look for this file, as MONAI Label's layout of an app has it; all metadata are in pyproject.toml."""

from setuptools import setup

setup()
