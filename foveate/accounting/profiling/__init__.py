"""Measuring on this machine: time beside a reference, and peak memory."""
