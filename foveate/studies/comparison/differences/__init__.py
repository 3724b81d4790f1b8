"""Differences in scores that are no mean over images."""
