"""What a network learns from another one: from its scores, and from its blocks before surgery."""
