"""What a network costs, what its plan adds and takes away, the memory of training, and time beside a reference."""
