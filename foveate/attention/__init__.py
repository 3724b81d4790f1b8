"""Mechanisms (B, C, H, W) -> (B, C, H, W), one file each; the file's name is the registered name."""
