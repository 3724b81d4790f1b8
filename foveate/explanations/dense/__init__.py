"""Networks of pixels and of objects, seen as classifiers, and their drawings."""
