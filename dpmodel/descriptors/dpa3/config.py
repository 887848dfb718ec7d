"""The options of dpa3."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dpmodel.config import MISSING, Config, at_least, capacity, option, positive, section
from dpmodel.descriptors.base import Capacity, DescriptorConfig
from dpmodel.descriptors.dpa3.descriptor import DPA3, fresh
from dpmodel.errors import InputError
from dpmodel.nn.charge_spin import check_charge_spin
from dpmodel.nn.mlp import Seed
from dpmodel.nn.residual import STYLES

__all__ = ["DPA3Config", "RepflowConfig"]


class RepflowConfig(Config):
    """The message passing of dpa3: cutoffs, widths and which updates a layer makes."""

    e_rcut: float = option(MISSING, "Cutoff radius of the edges.", unit="Å", check=positive)
    e_rcut_smth: float = option(
        MISSING, "Where the switch function of the edges starts to fall from 1.", unit="Å", check=at_least(0)
    )
    e_sel: Any = option(
        MISSING,
        'Capacity of the neighbour list: the nearest `e_sel` atoms. A number; "auto" takes 1.1 times the largest count '
        'in the training data, "auto:f" f times, rounded up to a multiple of 4.',
        check=capacity,
    )
    a_rcut: float = option(MISSING, "Edges shorter than this span angles.", unit="Å", check=positive)
    a_rcut_smth: float = option(
        MISSING, "Where the switch function of the angles starts to fall from 1.", unit="Å", check=at_least(0)
    )
    a_sel: Any = option(MISSING, "The nearest `a_sel` atoms span angles; `auto` as for `e_sel`.", check=capacity)
    n_dim: int = option(128, "Width of the atoms' features.", check=positive)
    e_dim: int = option(64, "Width of the edges' features.", check=positive)
    a_dim: int = option(64, "Width of the angles' features.", check=positive)
    nlayers: int = option(6, "Number of layers.", check=positive)
    a_compress_rate: int = option(
        0,
        "Narrows what atoms and edges send to the angles: atoms to a_dim / rate columns, edges to a_compress_e_rate "
        "times half of that; 0: not at all.",
        check=at_least(0),
    )
    a_compress_e_rate: int = option(1, "See a_compress_rate.", check=positive)
    a_compress_use_split: bool = option(False, "Narrow by taking the leading columns, instead of by a trained layer.")
    n_multi_edge_message: int = option(1, "Number of messages per edge, each with its own residual.", check=positive)
    axis_neuron: int = option(4, "Columns of the second factor in the symmetrised features.", check=positive)
    fix_stat_std: float = option(
        0.3, "Deviation of the environment matrix, for all types; 0: from the data.", check=at_least(0)
    )
    skip_stat: bool = option(False, "Old form of fix_stat_std = 0.3.")
    update_angle: bool = option(True, "Whether there are angles.")
    update_style: str = option(
        "res_residual",
        "How updates are added: res_avg divides the sum by the root of their number, res_incr divides the updates' sum, "
        "res_residual weighs each by a trained vector.",
        choices=STYLES,
    )
    update_residual: float = option(0.1, "Initial weights of res_residual.")
    update_residual_init: str = option(
        "const", "norm: normal with deviation update_residual; const: all equal to it.", choices=("norm", "const")
    )
    optim_update: bool = option(True, "A form of the matrix products with the same numbers; there is one form here.")
    smooth_edge_update: bool = option(
        False, "False: edges that span no angles send themselves instead of nothing, and energies are not smooth there."
    )
    edge_init_use_dist: bool = option(
        False, "Edges begin with their length instead of the environment matrix.", aliases=("edge_use_dist",)
    )
    use_exp_switch: bool = option(
        False,
        "The exponential switch function, which does not vanish at the cutoff, instead of the polynomial one.",
        aliases=("use_env_envelope",),
    )
    use_dynamic_sel: bool = option(
        False, "Sums are divided by e_sel / sel_reduce_factor (and a_sel) instead of e_sel; needs smooth_edge_update."
    )
    sel_reduce_factor: float = option(10.0, "See use_dynamic_sel.", check=positive)
    sequential_update: bool = option(
        False, "Within a layer, update edges, then angles, then edges by angles, then atoms, each from the new values."
    )

    @property
    def edge_norm(self) -> float:
        """What sums over edges are divided by."""
        return self.e_sel / self.sel_reduce_factor if self.use_dynamic_sel else float(self.e_sel)

    @property
    def angle_norm(self) -> float:
        """The square of what sums over angles are divided by."""
        return self.a_sel / self.sel_reduce_factor if self.use_dynamic_sel else float(self.a_sel)

    @property
    def deviation(self) -> float:
        """Fixed deviation of the environment matrix; 0: from the data."""
        return 0.3 if self.skip_stat else self.fix_stat_std

    @property
    def message_widths(self) -> tuple[int, int]:
        """Columns of atoms and of edges that angles read."""
        c = self.a_compress_rate
        return (self.a_dim // c, self.a_dim // (2 * c) * self.a_compress_e_rate) if c else (self.n_dim, self.e_dim)

    def check(self) -> None:
        """Raise InputError where options contradict each other."""
        c, split = self.a_compress_rate, self.a_compress_use_split
        narrow, thin = self.message_widths
        rules = (
            (self.e_rcut >= self.a_rcut, f"a_rcut = {self.a_rcut} must not exceed e_rcut = {self.e_rcut}"),
            (
                isinstance(self.a_sel, str) or isinstance(self.e_sel, str) or self.e_sel >= self.a_sel,
                f"a_sel = {self.a_sel} must not exceed e_sel = {self.e_sel}",
            ),
            (self.e_rcut_smth < self.e_rcut, f"e_rcut_smth = {self.e_rcut_smth} must be below e_rcut = {self.e_rcut}"),
            (self.a_rcut_smth < self.a_rcut, f"a_rcut_smth = {self.a_rcut_smth} must be below a_rcut = {self.a_rcut}"),
            (
                not self.use_exp_switch or min(self.e_rcut_smth, self.a_rcut_smth) > 0,
                "use_exp_switch needs e_rcut_smth and a_rcut_smth above 0",
            ),
            (
                self.smooth_edge_update or not self.use_dynamic_sel,
                "use_dynamic_sel needs smooth_edge_update = true",
            ),
            (
                not self.sequential_update or (self.update_style == "res_residual" and self.update_angle),
                "sequential_update needs update_style = 'res_residual' and update_angle = true",
            ),
            (
                not c or (self.a_dim * self.a_compress_e_rate) % (2 * c) == 0,
                f"a_dim * a_compress_e_rate must be a multiple of 2 * a_compress_rate = {2 * c}",
            ),
            (
                not c or min(narrow, thin) > 0,
                f"a_compress_rate = {c} leaves no columns of a_dim = {self.a_dim}",
            ),
            (
                not (c and split) or (narrow <= self.n_dim and thin <= self.e_dim),
                f"a_compress_use_split takes {narrow} columns of n_dim = {self.n_dim} and {thin} of e_dim = {self.e_dim}",
            ),
            (
                self.axis_neuron <= min(self.n_dim, self.e_dim),
                f"axis_neuron = {self.axis_neuron} must not exceed n_dim and e_dim",
            ),
        )
        for holds, message in rules:
            if not holds:
                raise InputError(message)


class DPA3Config(DescriptorConfig, key="dpa3"):
    """Message passing on atoms, edges and angles (DPA-3)."""

    repflow: RepflowConfig = section(lambda: (RepflowConfig,), "The message passing.")
    concat_output_tebd: bool = option(False, "Append the type embedding to the features.")
    activation_function: str = option("silu", "Activation of all nets.")
    precision: str = option("default", "Precision of the computation: default, float16, float32 or float64.")
    exclude_types: tuple[tuple[int, int], ...] = option(
        (), "Pairs of types that do not see each other in this descriptor."
    )
    env_protection: float = option(
        0.0, "Added to every distance in the environment matrix, against division by zero.", unit="Å", check=at_least(0)
    )
    trainable: bool = option(True, "Whether the descriptor is trained.")
    seed: Any = option(None, "Seed of the initial weights; null is random.")
    use_econf_tebd: bool = option(False, "Embed the elements' electron configurations instead of one row per type.")
    use_tebd_bias: bool = option(False, "Whether the type embedding has a bias.")
    use_loc_mapping: bool = option(True, "Stored; the numbers do not depend on it.")
    add_chg_spin_ebd: bool = option(
        False, "Embed the total charge and the spin multiplicity of the frame, which `charge_spin` gives."
    )
    default_chg_spin: tuple[float, float] | None = option(
        None, "Charge and spin of frames that come without `charge_spin`."
    )

    def tolerates_overlap(self) -> bool:
        return self.env_protection > 0.0

    def takes_charge_spin(self) -> bool:
        return self.add_chg_spin_ebd

    def default_charge_spin(self) -> tuple[float, float] | None:
        return self.default_chg_spin if self.add_chg_spin_ebd else None

    def sizes(self) -> str:
        flow = self.repflow
        angles = f", {flow.a_dim} of angles" if flow.update_angle else ""
        layers = "1 layer" if flow.nlayers == 1 else f"{flow.nlayers} layers"
        return f"{layers}, widths {flow.n_dim} of atoms, {flow.e_dim} of edges{angles}"

    def capacities(self) -> tuple[Capacity, ...]:
        flow = self.repflow
        edges = Capacity(option="repflow.e_sel", value=flow.e_sel, rcut=flow.e_rcut, typed=False)
        angles = Capacity(option="repflow.a_sel", value=flow.a_sel, rcut=flow.a_rcut, typed=False)
        return (edges, angles) if flow.update_angle or isinstance(flow.a_sel, str) else (edges,)

    def with_capacities(self, values: Sequence[tuple[int, ...]]) -> DPA3Config:
        numbers = dict(zip(("e_sel", "a_sel"), (value[0] for value in values), strict=False))
        return self.replace(repflow=self.repflow.replace(**numbers))

    def check(self) -> None:
        """Raise InputError where options contradict each other."""
        try:
            self.repflow.check()
        except InputError as problem:
            raise InputError(f"repflow: {problem}") from None
        if self.default_chg_spin is not None:
            check_charge_spin(np.asarray([self.default_chg_spin]), "default_chg_spin")

    def build(self, ntypes: int, type_map: tuple[str, ...], *, seed: Seed = None) -> DPA3:
        """`seed` is used where the section names none."""
        self.check()
        return fresh(self, ntypes, type_map, seed)
