"""What a classifier says of images: predictions as they come, and how good they are."""
