"""The model bank as folders and files: opened and written, its manifest, its signature, its way between sites."""
