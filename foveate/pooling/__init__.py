"""Pools: (B, C, H, W) -> (B, C), one file each; ``foveate.build(spec, channels, kind="pooling")``."""
