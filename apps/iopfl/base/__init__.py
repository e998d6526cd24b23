"""What every part stands on: errors, whole and private files, locks, digests. Imports no torch."""
