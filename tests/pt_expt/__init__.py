"""The exportable PyTorch backend."""
