"""What this machine has, for a bug report."""
