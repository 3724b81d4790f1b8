"""From a split of images to batches: order, decoding, caches, mixing."""
