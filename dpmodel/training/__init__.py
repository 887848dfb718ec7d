"""Training: what needs no framework."""
