"""DICOM: series, segmentations, and the services that carry them (`scp`, `scu`).

The rules are highdicom's: the standard's own terms, strict on writing, tolerant
on reading. Patient coordinates are LPS in DICOM and RAS everywhere else; the
only conversion is in `geometry`.
"""
