"""Exact counting of a forward pass: what runs, and a formula for each operation."""
