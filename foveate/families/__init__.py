"""Many plans in one line of text."""
