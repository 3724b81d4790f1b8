"""The networks of a comparison where they run: as exported files."""
