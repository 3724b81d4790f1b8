"""What varies in a family of plans: factors, their levels, and whether they matter."""
