"""How the sites of a federation train: one module each, with its source."""
