"""What a network can be trained for: one object for each task, which the loop asks."""
