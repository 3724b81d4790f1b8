"""What a trained network's attention does, and how faithful an explanation is."""
