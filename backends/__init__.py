"""Backends beyond NumPy, imported as `dpmodel.backends`. Each is a bridge and a table of faster overrides."""
