"""Bindings to other programs, one module each, each with an extra of its own; none is imported by the library."""
