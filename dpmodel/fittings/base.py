"""The core that all fitting nets share (spec of the family: inputs, per-type nets, vacuum, bias, exclusions)."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, Self

import numpy as np

from dpmodel.config import Config, at_least, option
from dpmodel.descriptors.base import Features
from dpmodel.graph import Graph
from dpmodel.nn import MLP, child_seed, make_fitting_net
from dpmodel.nn.mlp import Seed
from dpmodel.op import Array, Op, buffer, child
from dpmodel.ops import array_namespace, as_dtype, take_rows, zeros
from dpmodel.precision import dtype_name, global_dtype
from dpmodel.type_map import TypeChange

__all__ = ["Fitting", "FittingConfig", "Output"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Output:
    """What a model predicts, and under which names."""

    name: str
    """Name of the quantity and of its label, as in `energy`; that of atoms is `atom_<name>`."""
    atomic: str
    """Key of the per-atom values."""
    reduced: str
    """Key of the per-frame values."""
    shape: tuple[int, ...]
    """Shape of one atom's value."""
    differentiable: bool
    """Whether forces and virials are derived from it."""
    intensive: bool = False
    """Mean over atoms instead of sum."""
    loss: str = "property"
    """`type` of the loss that goes with it."""
    by_type: bool = True
    """Whether statistics of the labels are those of every type; False: one for all types."""


class FittingConfig(Config):
    """Options common to all fitting nets."""

    neuron: tuple[int, ...] = option(
        (120, 120, 120), "Widths of the hidden layers; may be empty.", aliases=("n_neuron",)
    )
    activation_function: str = option("tanh", "Activation of the hidden layers.")
    resnet_dt: bool = option(True, "Use a trained time step in the skip connections.")
    precision: str = option("default", "Precision of the computation: default, float16, float32 or float64.")
    trainable: Any = option(
        True, "Whether the net is trained: one value, or one per layer (hidden layers, then the last); null is true."
    )
    seed: Any = option(None, "Seed of the initial weights; null is random.")
    numb_fparam: int = option(0, "Number of frame parameters.", check=at_least(0))
    numb_aparam: int = option(0, "Number of atomic parameters.", check=at_least(0))
    default_fparam: tuple[float, ...] | None = option(None, "Frame parameters where an evaluation gives none.")
    dim_case_embd: int = option(0, "Width of the case (task) embedding.", check=at_least(0))
    use_aparam_as_mask: bool = option(False, "Leave the atomic parameters out of the net's input.")
    rcond: float | None = option(None, "Of old least-squares fits.", effect="ignored")
    layer_name: tuple[str | None, ...] | None = option(None, "Sharing of single layers by name.", effect="refused")

    def output(self) -> Output:
        """What such a net predicts."""
        raise NotImplementedError(f"{type(self).__name__} does not define output()")

    def build(
        self, ntypes: int, dim_descriptor: int, mixed_types: bool, *, dim_emb: int = 0, seed: Seed = None
    ) -> Fitting:
        """A fitting with fresh random weights. dim_emb: number of the descriptor's vectors."""
        raise NotImplementedError(f"{type(self).__name__} does not define build()")

    def why_no_bias(self) -> str:
        """Why no bias of a type is added, so that none can be given; empty where one is."""
        return ""

    def layer_trainable(self) -> tuple[bool, ...]:
        """One flag per layer."""
        count = len(self.neuron) + 1
        if isinstance(self.trainable, tuple | list):
            return tuple(bool(flag) for flag in self.trainable)
        return (True if self.trainable is None else bool(self.trainable),) * count

    @property
    def dtype(self) -> str:
        """The dtype that `precision` means."""
        return dtype_name(self.precision)

    def initial_state(
        self, ntypes: int, dim_descriptor: int, dim_out: int, mixed_types: bool, seed: Seed
    ) -> dict[str, Any]:
        """Fields of a fresh fitting: random nets, neutral statistics. `seed` is used where the section names none."""
        # Descriptors take part 0: equal seeds in both sections must not give equal random numbers.
        seed = child_seed(seed if self.seed is None else self.seed, 1)
        n_in = dim_descriptor + self.numb_fparam + self.dim_case_embd
        n_in += 0 if self.use_aparam_as_mask else self.numb_aparam
        networks = tuple(
            make_fitting_net(
                n_in, dim_out, self.neuron, seed=child_seed(seed, k), dtype=self.dtype,
                activation=self.activation_function, resnet_dt=self.resnet_dt, trainable=self.layer_trainable(),
            )
            for k in range(1 if mixed_types else ntypes)
        )  # fmt: skip
        nf, na, nc = self.numb_fparam, self.numb_aparam, self.dim_case_embd
        return {
            "config": self,
            "ntypes": ntypes,
            "mixed_types": mixed_types,
            "networks": networks,
            "bias_atom_e": np.zeros((ntypes, dim_out), global_dtype()),
            "fparam_avg": np.zeros(nf, self.dtype) if nf else None,
            "fparam_inv_std": np.ones(nf, self.dtype) if nf else None,
            "default_fparam": None if self.default_fparam is None else np.asarray(self.default_fparam, self.dtype),
            "aparam_avg": np.zeros(na, self.dtype) if na else None,
            "aparam_inv_std": np.ones(na, self.dtype) if na else None,
            "case_embd": np.zeros(nc, self.dtype) if nc else None,
        }


class Fitting(Op):
    """Base of the fitting nets: x = [descriptor | fparam | aparam | case], one net for all types or one per type."""

    config: Any
    ntypes: int
    mixed_types: bool
    networks: tuple[MLP, ...] = child()
    """One (mixed types) or one per type."""
    bias_atom_e: Array = buffer()
    """(ntypes, dim_out), global precision. Statistics write the model's out_bias instead; this one is usually 0."""
    fparam_avg: Array | None = buffer(default=None)
    fparam_inv_std: Array | None = buffer(default=None)
    default_fparam: Array | None = buffer(given=True, default=None)
    aparam_avg: Array | None = buffer(default=None)
    aparam_inv_std: Array | None = buffer(default=None)
    case_embd: Array | None = buffer(default=None)
    """(dim_case_embd,): one-hot row of the task."""

    needs_rotation: ClassVar[bool] = False
    """Whether `call` reads `Features.rotation`."""

    @property
    def dim_core(self) -> int:
        """Width of the nets' output."""
        return int(self.networks[0].layers[-1].w.shape[1])

    def output(self) -> Output:
        """What this net predicts."""
        output: Output = self.config.output()
        return output

    def groups_types(self) -> bool:
        """Whether `call` needs `Graph.types`."""
        return not self.mixed_types

    def vacuum(self) -> tuple[bool, ...] | None:
        """By type: subtract the net's value at a zero descriptor; None: for no type."""
        return None

    def with_types(self, change: TypeChange) -> Self:
        """A copy for other types. Raises InputError for new types where every type has a net of its own."""
        networks = self.networks
        if not self.mixed_types:
            change.none_added(f"the {self.config.key} fitting", "it has a net of its own for every type")
            networks = change.networks(networks, 1)
        return self.replace(
            config=change.section(self.config), ntypes=len(change.new), networks=networks,
            bias_atom_e=change.rows(self.bias_atom_e, 0.0),
        )  # fmt: skip

    def shifted(self, value: Array, atype: Array, bias: Array, std: Array) -> Array:
        """Atoms' values (n, *shape) with the statistics of the labels, bias and std (ntypes, size)."""
        found = take_rows(bias, atype)
        return value + array_namespace(value).reshape(found, value.shape)

    def bias_share(self) -> np.ndarray:
        """(ntypes, 1): by how much outputs change per unit of the output bias, by type."""
        return np.ones((self.ntypes, 1))

    def core(self, features: Features, graph: Graph) -> Array:
        """(n, dim_out), global precision: nets plus bias_atom_e, before exclusions."""
        xp, n = array_namespace(features.node), graph.frame.shape[0]
        x, extra = self._inputs(features, graph)
        vacuum = self.vacuum()
        x0 = None if vacuum is None else xp.concat([zeros(features.node.shape, x), *extra], axis=-1)
        if self.mixed_types:
            y = self.networks[0](x)
            y = y if x0 is None else y - self.networks[0](x0)
        else:
            y = self._by_type(x, x0, vacuum, graph)
        atype = graph.atype[:n]
        atype = xp.where(atype < 0, xp.zeros_like(atype), atype)
        return as_dtype(y, global_dtype()) + take_rows(as_dtype(self.bias_atom_e, global_dtype()), atype)

    def hidden(self, features: Features, graph: Graph) -> Array:
        """(n, width), the nets' precision: the last hidden layer, or the input of nets without one."""
        x, _ = self._inputs(features, graph)
        if self.mixed_types:
            return self.networks[0].hidden(x)
        types = graph.grouped()
        parts = [net.hidden(take_rows(x, rows)) for net, rows in zip(self.networks, types.rows, strict=True)]
        return take_rows(array_namespace(x).concat(parts, axis=0), types.place)

    def _inputs(self, features: Features, graph: Graph) -> tuple[Array, list[Array]]:
        """The nets' input (n, width), and its blocks behind the descriptor."""
        dtype = self.networks[0].layers[-1].w.dtype
        x, extra = as_dtype(features.node, dtype), self._extra_inputs(graph, graph.frame.shape[0], dtype)
        return (array_namespace(x).concat([x, *extra], axis=-1) if extra else x), extra

    def _by_type(self, x: Array, x0: Array | None, vacuum: tuple[bool, ...] | None, graph: Graph) -> Array:
        parts, types = [], graph.grouped()
        for t, (net, rows) in enumerate(zip(self.networks, types.rows, strict=True)):
            y = net(take_rows(x, rows))
            # Types beyond the end of a short list count as preset (spec of atom_ener).
            if x0 is not None and vacuum is not None and (t >= len(vacuum) or vacuum[t]):
                y = y - net(take_rows(x0, rows))
            parts.append(y)
        return take_rows(array_namespace(x).concat(parts, axis=0), types.place)

    def _extra_inputs(self, graph: Graph, n: int, dtype: Any) -> list[Array]:
        """The blocks behind the descriptor, each (n, width) in the net's precision."""
        cfg, blocks = self.config, []
        xp = array_namespace(graph.edge_vec)
        if cfg.numb_fparam:
            if graph.fparam is not None:
                fparam = as_dtype(graph.fparam, dtype)
            elif self.default_fparam is not None:
                fparam = xp.broadcast_to(self.default_fparam[...], (graph.natoms.shape[0], cfg.numb_fparam))
            else:
                raise ValueError(
                    f"this model needs fparam ({cfg.numb_fparam} numbers per frame) and has no default_fparam"
                )
            blocks.append(take_rows((fparam - self.fparam_avg) * self.fparam_inv_std, graph.frame))
        if cfg.numb_aparam and not cfg.use_aparam_as_mask:
            if graph.aparam is None:
                raise ValueError(f"this model needs aparam ({cfg.numb_aparam} numbers per atom)")
            blocks.append((as_dtype(graph.aparam, dtype) - self.aparam_avg) * self.aparam_inv_std)
        if self.case_embd is not None:
            blocks.append(xp.broadcast_to(self.case_embd[...], (n, cfg.dim_case_embd)))
        return blocks
