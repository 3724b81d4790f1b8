"""Classifiers that are more than pool + linear, one file each: several feature maps and the pooled features -> scores."""
