"""What a run decides by measuring: mixed precision and compilation."""
