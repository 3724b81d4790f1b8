"""Training: the recipe, the loop, the input pipeline, and the metrics."""
