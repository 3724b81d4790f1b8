"""Vision transformers: their tokens as feature maps, and the attention of their class token."""
