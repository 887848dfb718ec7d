"""One test body, every backend. A new descriptor, fitting net or model gets all of it by listing cases in `cases.py`."""
