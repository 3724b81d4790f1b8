"""Classifiers that are more than pool + linear, one file each: feature maps and the pooled features -> scores."""
