"""A comparison as one file: what is compared and how, and the runs that were made."""
