"""Workers on one machine or many that join a grid of runs."""
