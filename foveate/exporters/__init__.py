"""Files for the runtimes that a network ships to, each checked against the network before it is kept."""
