"""A model with its plan as files: checkpoint, Hugging Face folder, timm entry point."""
