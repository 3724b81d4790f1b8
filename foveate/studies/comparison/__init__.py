"""Train a network with several plans and seeds, and compare: the runs, their schedule, and the statistics."""
