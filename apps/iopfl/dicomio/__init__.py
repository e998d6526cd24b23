"""DICOM: series, segmentations and structure sets, read and written.

The rules are highdicom's: the standard's own terms, strict on writing, tolerant
on reading. Patient coordinates are LPS in DICOM and RAS everywhere else; the
only conversion is in `geometry`.
"""

import logging
import warnings

from pydicom import config

# pydicom's warnings about invalid values quote them, and they may be a patient's name or birth date; what is
# read is checked where it matters, and what is written by highdicom.
config.settings.reading_validation_mode = config.IGNORE
config.settings.writing_validation_mode = config.IGNORE
logging.getLogger("pydicom").setLevel(logging.CRITICAL)
logging.getLogger("highdicom").setLevel(logging.WARNING)  # it logs each module that it copies
warnings.filterwarnings("ignore", module=r"pydicom\.")
