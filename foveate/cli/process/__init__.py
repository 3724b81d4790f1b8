"""What a command does with its own process: signals, and memory."""
