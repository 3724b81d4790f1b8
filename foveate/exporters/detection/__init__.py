"""A detector as a file: its graph with non-maximum suppression, and the checks of its objects."""
