"""What MONAI Label expects of an app: infer and train tasks, strategies, scoring; thin over `core`."""
