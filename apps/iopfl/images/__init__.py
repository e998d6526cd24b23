"""Image files: how they are named, opened and written, where they lie in the patient. Knows no task."""
