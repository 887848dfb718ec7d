"""What the descriptors with one set of neighbours for all types share: the embedding of types in their nets."""

from __future__ import annotations

from typing import Any

from dpmodel.config import at_least, option
from dpmodel.descriptors.environment import EnvironmentConfig, EnvironmentDescriptor, excluded
from dpmodel.graph import Graph, Slots
from dpmodel.nn import MLP, TypeEmbedding, child_seed, make_type_embedding
from dpmodel.nn.mlp import Seed
from dpmodel.op import Array, child
from dpmodel.ops import array_namespace, take_rows
from dpmodel.precision import dtype_name
from dpmodel.type_map import TypeChange

__all__ = ["MixedConfig", "MixedDescriptor"]


class MixedConfig(EnvironmentConfig):
    """The options of `EnvironmentConfig`, and those of the type embedding."""

    tebd_dim: int = option(8, "Width of the type embedding.", check=at_least(1))
    tebd_input_mode: str = option(
        "concat",
        "How types enter the embedding net. concat: beside the distance. strip: through a net of their own, whose output "
        "multiplies that of the other.",
        choices=("concat", "strip"),
    )
    concat_output_tebd: bool = option(True, "Append the embedding of the centre's type to the features.")
    use_econf_tebd: bool = option(
        False, "Embed the electron configurations of the elements; types must be chemical symbols."
    )
    use_tebd_bias: bool = option(False, "Whether the type embedding has a bias.")

    @property
    def strips(self) -> bool:
        """Whether types enter through a net of their own."""
        return self.tebd_input_mode == "strip"

    def make_types(self, ntypes: int, type_map: tuple[str, ...], seed: Seed) -> TypeEmbedding:
        """The type embedding, with random weights."""
        return make_type_embedding(
            ntypes, self.tebd_dim, seed=child_seed(seed, 0), dtype=dtype_name(self.precision), bias=self.use_tebd_bias,
            trainable=self.trainable, type_map=type_map if self.use_econf_tebd else None,
        )  # fmt: skip


class MixedDescriptor(EnvironmentDescriptor):
    """Base of descriptors whose nets see types through an embedding."""

    config: Any
    type_embedding: TypeEmbedding | None = child(default=None)
    """None where this is a part of a descriptor that owns the embedding."""
    net: MLP = child()
    """Of the distance (or angle), and of types in the mode concat."""
    type_net: MLP | None = child(default=None)
    """Of types, in the mode strip."""

    def _nets_of_types(self, change: TypeChange) -> dict[str, Any]:
        own = self.type_embedding
        return {} if own is None else {"type_embedding": own.with_types(change)}

    def _neighbour_types(self, graph: Graph, slots: Slots) -> Array:
        """(n, w): types of the neighbours; 0 in empty slots."""
        xp = array_namespace(graph.atype)
        kind = take_rows(take_rows(graph.atype, graph.neighbour), slots.edge)
        return xp.where(slots.mask & (kind >= 0), kind, xp.zeros_like(kind))

    def _shown(self, slots: Slots, centre: Array, neighbour: Array) -> Array:
        """(n, w) bool: slots with a neighbour that is not excluded."""
        left_out = excluded(self.config.exclude_types, centre[:, None], neighbour)
        return slots.mask if left_out is None else slots.mask & ~left_out
