"""One file for each format; the folder is the registry: ``formats/NAME.py`` holds the format NAME.

The first name in the file's ``__all__`` is its class, a :class:`foveate.exporters.format.Format`.
"""
