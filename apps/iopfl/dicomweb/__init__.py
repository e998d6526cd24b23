"""The one client of DICOMweb: the label server's PACS and the listener's STOW destinations are asked by it."""
