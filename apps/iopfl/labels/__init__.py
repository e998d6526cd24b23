"""The labels of a site: the datastore, every version of a label, and which of them is final."""
