"""The networks of a comparison: how they are made with their plans, and what tells one from another."""
