"""IOP-FL inside MONAI Label: a personalized model bank, and a test-time router over it."""

__version__ = "0.1.0"
