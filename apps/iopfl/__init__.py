"""IOP-FL inside MONAI Label: a personalized model bank, and a test-time router over it."""

from iopfl._moved import install

__version__ = "0.1.0"

install()
del install
