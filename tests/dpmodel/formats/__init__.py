"""Data systems of every format."""
