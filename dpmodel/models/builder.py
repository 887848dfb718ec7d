"""What builds the graphs of a model."""

from __future__ import annotations

from dpmodel.geometry.build import GraphBuilder
from dpmodel.models.base import Model

__all__ = ["builder_of"]


def builder_of(model: Model) -> GraphBuilder:
    """The builder of a model's graphs, with all that the model demands of them: lists, excluded pairs, groups of types."""
    return GraphBuilder(
        requests=model.requests(),
        ntypes=model.graph_model.ntypes,
        exclude_pairs=model.graph_model.pair_exclude_types,
        spin_scales=model.spin_scales,
        group_by_type=model.groups_types(),
        allow_overlap=model.tolerates_overlap(),
    )
