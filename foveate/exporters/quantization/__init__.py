"""8 bit files: quantization by the runtimes' own tools, and what is left of the attention after it."""
