"""Which plans are worth comparing: a search in a family, under a budget."""
