"""What the descriptors of one environment matrix share: options, the neighbour request, normalised rows, statistics."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from dpmodel.config import at_least, option, positive
from dpmodel.descriptors.base import Capacity, Descriptor, DescriptorConfig
from dpmodel.geometry.switch import env_mat
from dpmodel.graph import Graph, NeighbourRequest, Slots
from dpmodel.nn import MLP, child_seed, make_embedding_net
from dpmodel.nn.mlp import Seed
from dpmodel.op import Array, buffer
from dpmodel.ops import array_namespace, as_dtype, take_rows
from dpmodel.precision import dtype_name
from dpmodel.statistics.environment import cached_environment_items, environment_mean_and_deviation
from dpmodel.type_map import TypeChange

if TYPE_CHECKING:
    from dpmodel.statistics.cache import StatCache
    from dpmodel.statistics.items import StatItem

__all__ = ["EnvironmentConfig", "EnvironmentDescriptor", "TypedConfig", "excluded"]


class EnvironmentConfig(DescriptorConfig):
    """Options of every descriptor that reads one environment matrix."""

    typed: ClassVar[bool] = False
    """Whether `sel` has one number per neighbour type."""

    sel: Any = option(
        "auto",
        "Capacity of the neighbour list: the number of neighbours of all types. "
        '"auto" takes 1.1 times the largest count in the training data, "auto:f" f times, rounded up to a multiple of 4.',
    )
    rcut: float = option(6.0, "Cutoff radius.", unit="Å", check=positive)
    rcut_smth: float = option(0.5, "Where the switch function starts to fall from 1.", unit="Å", check=at_least(0))
    neuron: tuple[int, ...] = option((10, 20, 40), "Widths of the embedding nets.")
    activation_function: str = option("tanh", "Activation of the embedding nets.")
    resnet_dt: bool = option(False, "Use a trained time step in the skip connections.")
    precision: str = option("default", "Precision of the computation: default, float16, float32 or float64.")
    trainable: bool = option(True, "Whether the embedding nets are trained.")
    seed: Any = option(None, "Seed of the initial weights; null is random.")
    exclude_types: tuple[tuple[int, int], ...] = option(
        (), "Pairs of types that do not see each other in this descriptor."
    )
    env_protection: float = option(
        0.0, "Added to every distance in the environment matrix, against division by zero.", unit="Å", check=at_least(0)
    )
    set_davg_zero: bool = option(False, "Do not subtract the mean of the environment matrix.")

    def tolerates_overlap(self) -> bool:
        return self.env_protection > 0.0

    def sizes(self) -> str:
        return f"widths {'-'.join(map(str, self.neuron))}"

    def capacities(self) -> tuple[Capacity, ...]:
        return (Capacity(option="sel", value=self.sel, rcut=self.rcut, typed=self.typed),)

    def with_capacities(self, values: Sequence[tuple[int, ...]]) -> Self:
        return self.replace(sel=values[0] if self.typed else values[0][0])

    def nets(self, n_in: int, count: int, seed: Seed, *, first: int = 0) -> tuple[MLP, ...]:
        """Embedding nets with random weights. first: number of the first, for its seed."""
        return tuple(
            make_embedding_net(
                n_in, self.neuron, seed=child_seed(seed, first + k), dtype=dtype_name(self.precision),
                activation=self.activation_function, resnet_dt=self.resnet_dt, trainable=self.trainable,
            )
            for k in range(count)
        )  # fmt: skip

    def neutral(self, ntypes: int, columns: int = 4) -> dict[str, Array]:
        """Statistics of mean 0 and deviation 1."""
        dtype = dtype_name(self.precision)
        return {"davg": np.zeros((ntypes, columns), dtype), "dstd": np.ones((ntypes, columns), dtype)}

    @property
    def capacity(self) -> tuple[int, ...]:
        """`sel`, resolved: per type, or one number."""
        return tuple(self.sel) if isinstance(self.sel, tuple | list) else (int(self.sel),)


class TypedConfig(EnvironmentConfig):
    """The same, with neighbours counted per type."""

    typed: ClassVar[bool] = True

    sel: Any = option(
        "auto",
        "Capacity of the neighbour list: one number per type, in the order of `type_map`. "
        '"auto" takes 1.1 times the largest count in the training data, "auto:f" f times, rounded up to a multiple of 4.',
    )


class EnvironmentDescriptor(Descriptor):
    """Base of descriptors of one environment matrix R_ij = (e_ij - davg) / dstd, see `dpmodel.geometry.switch`."""

    radial_only: ClassVar[bool] = False
    """Whether rows have one component, not four."""

    config: Any
    ntypes: int
    davg: Array = buffer()
    """(ntypes, 4 or 1): mean of the environment rows by centre type."""
    dstd: Array = buffer()
    """(ntypes, 4 or 1): their deviation."""

    @property
    def mixed_types(self) -> bool:
        return not self.config.typed

    @property
    def nnei(self) -> int:
        """Slots of an atom, empty ones included."""
        return sum(self.config.capacity)

    def requests(self) -> tuple[NeighbourRequest, ...]:
        cfg = self.config
        return (NeighbourRequest(rcut=cfg.rcut, sel=cfg.capacity, layout="typed_slots" if cfg.typed else "slots"),)

    def sums(self, graphs: Callable[[], Iterable[Graph]], cache: StatCache | None = None) -> dict[str, StatItem]:
        cfg = self.config
        return cached_environment_items(
            graphs, cache, ntypes=self.ntypes, rcut=cfg.rcut, rcut_smth=cfg.rcut_smth, sel=cfg.capacity,
            mixed_types=self.mixed_types, protection=cfg.env_protection, exclude_types=cfg.exclude_types,
            radial_only=self.radial_only,
        )  # fmt: skip

    def with_sums(self, sums: Mapping[str, StatItem], *, protect: float) -> Self:
        cfg, radial = self.config, self.radial_only
        davg, dstd = environment_mean_and_deviation(sums, self.ntypes, radial_only=radial, protect=protect)
        dtype = self.davg.dtype
        davg = self.davg if cfg.set_davg_zero else davg.astype(dtype)
        return self.replace(davg=davg, dstd=dstd.astype(dtype))

    def with_types(self, change: TypeChange) -> Self:
        cfg = self.config
        if cfg.typed:
            change.only_order(
                cfg.key, "it has nets of their own for them, and the slots of every type count in its sums"
            )
        return self.replace(
            config=change.section(cfg), ntypes=len(change.new), davg=change.rows(self.davg, 0.0),
            dstd=change.rows(self.dstd, 1.0), **self._nets_of_types(change),
        )  # fmt: skip

    def _nets_of_types(self, change: TypeChange) -> dict[str, Any]:
        """The nets that belong to types, changed."""
        return {}

    def _centre_types(self, graph: Graph) -> Array:
        """(n,): types of the owned atoms; 0 for virtual ones, which models mask."""
        xp = array_namespace(graph.atype)
        atype = graph.atype[: graph.frame.shape[0]]
        return xp.where(atype < 0, xp.zeros_like(atype), atype)

    def _environment(self, graph: Graph, atype: Array) -> tuple[Array, Array]:
        """(e, 4 or 1) normalised rows of all edges, and (e, 1) their switch. atype: of `_centre_types`."""
        cfg = self.config
        vec = as_dtype(graph.edge_vec, self.davg.dtype)
        matrix, switch = env_mat(
            vec, graph.edge_mask, cfg.rcut, cfg.rcut_smth, cfg.env_protection, radial_only=self.radial_only
        )
        kind = take_rows(atype, graph.centre)
        return (matrix - take_rows(self.davg, kind)) / take_rows(self.dstd, kind), switch

    def _empty_slots(self, t: int, slots: Slots) -> Array:
        """(n,): how many slots of block t hold no neighbour."""
        xp = array_namespace(slots.mask)
        occupied = xp.sum(as_dtype(slots.mask, "int64"), axis=1)
        return float(self.config.capacity[t]) - as_dtype(occupied, self.davg.dtype)

    def _empty_rows(self) -> Array:
        """(ntypes, 4 or 1): what an empty slot holds, by centre type."""
        return -self.davg / self.dstd


def excluded(pairs: Sequence[tuple[int, int]], centre: Array, neighbour: Array) -> Array | None:
    """Where a pair of types is left out, for types of any shapes that broadcast; None where no pair is."""
    found = None
    for a, b in pairs:
        here = ((centre == a) & (neighbour == b)) | ((centre == b) & (neighbour == a))
        found = here if found is None else found | here
    return found
