"""The one mapping between DeePMD-kit's dictionaries and our Ops."""

from dpmodel.files.codecs.models import read_model_tree, write_model_tree

__all__ = ["read_model_tree", "write_model_tree"]
