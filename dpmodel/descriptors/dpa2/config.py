"""The options of dpa2."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from dpmodel.config import MISSING, Config, at_least, capacity, option, positive, section
from dpmodel.descriptors.base import Capacity, DescriptorConfig
from dpmodel.descriptors.dpa2.descriptor import DPA2, fresh
from dpmodel.errors import InputError
from dpmodel.nn.mlp import Seed
from dpmodel.nn.residual import STYLES

__all__ = ["DPA2Config", "RepformerConfig", "RepinitConfig"]

_SEL = 'A number; "auto" takes 1.1 times the largest count in the training data, "auto:f" f times, rounded up to a multiple of 4.'


class RepinitConfig(Config):
    """What atoms begin with: an environment embedding as of dpa1, and one of angles on request."""

    rcut: float = option(MISSING, "Cutoff radius.", unit="Å", check=positive)
    rcut_smth: float = option(MISSING, "Where the switch function starts to fall from 1.", unit="Å", check=at_least(0))
    nsel: Any = option(MISSING, f"Capacity of the neighbour list. {_SEL}", check=capacity)
    neuron: tuple[int, ...] = option((25, 50, 100), "Widths of the embedding net.")
    axis_neuron: int = option(16, "Number of columns of the embedding that form the second factor.", check=positive)
    tebd_dim: int = option(8, "Width of the type embedding.", check=positive)
    tebd_input_mode: str = option(
        "concat", "How types enter the embedding nets, as for dpa1.", choices=("concat", "strip")
    )
    set_davg_zero: bool = option(True, "Do not subtract the mean of the environment matrix.")
    activation_function: str = option("tanh", "Activation of the embedding nets.")
    resnet_dt: bool = option(False, "Use a trained time step in the skip connections.")
    type_one_side: bool = option(False, "Whether the net sees the type of the neighbour alone.")
    use_three_body: bool = option(False, "Whether there is an embedding of angles.")
    three_body_neuron: tuple[int, ...] = option((2, 4, 8), "Widths of its net.")
    three_body_sel: Any = option(40, f"Capacity of its neighbour list. {_SEL}", check=capacity)
    three_body_rcut: float = option(4.0, "Its cutoff radius.", unit="Å", check=positive)
    three_body_rcut_smth: float = option(0.5, "Where its switch function starts to fall.", unit="Å", check=at_least(0))


class RepformerConfig(Config):
    """The message passing of dpa2: cutoff, widths and which updates a layer makes."""

    rcut: float = option(MISSING, "Cutoff radius.", unit="Å", check=positive)
    rcut_smth: float = option(MISSING, "Where the switch function starts to fall from 1.", unit="Å", check=at_least(0))
    nsel: Any = option(MISSING, f"Capacity of the neighbour list. {_SEL}", check=capacity)
    nlayers: int = option(3, "Number of layers.", check=positive)
    g1_dim: int = option(128, "Width of the atoms' features.", check=positive)
    g2_dim: int = option(16, "Width of the pairs' features.", check=positive)
    axis_neuron: int = option(4, "Columns of the second factor in the symmetrised features.", check=positive)
    direct_dist: bool = option(False, "Pairs begin with their length and direction, not with the environment matrix.")
    update_g1_has_conv: bool = option(True, "Update atoms by a convolution over neighbours.")
    update_g1_has_drrd: bool = option(True, "Update atoms by the symmetrised features of neighbours.")
    update_g1_has_grrg: bool = option(True, "Update atoms by the symmetrised features of pairs.")
    update_g1_has_attn: bool = option(True, "Update atoms by attention to neighbours.")
    update_g2_has_g1g1: bool = option(True, "Update pairs by the product of their atoms.")
    update_g2_has_attn: bool = option(True, "Update pairs by attention between pairs.")
    update_h2: bool = option(False, "Update directions by attention between pairs.")
    attn1_hidden: int = option(64, "Width of the attention to neighbours.", check=positive)
    attn1_nhead: int = option(4, "Number of its heads.", check=positive)
    attn2_hidden: int = option(16, "Width of the attention between pairs.", check=positive)
    attn2_nhead: int = option(4, "Number of its heads.", check=positive)
    attn2_has_gate: bool = option(False, "Whether directions gate the attention between pairs.")
    activation_function: str = option("tanh", "Activation of all nets.")
    update_style: str = option(
        "res_avg",
        "How updates are added: res_avg divides the sum by the root of their number, res_incr divides the updates' sum, "
        "res_residual weighs each by a trained vector.",
        choices=STYLES,
    )
    update_residual: float = option(0.001, "Initial weights of res_residual.")
    update_residual_init: str = option(
        "norm", "norm: normal with deviation update_residual; const: all equal to it.", choices=("norm", "const")
    )
    set_davg_zero: bool = option(True, "Do not subtract the mean of the environment matrix.")
    trainable_ln: bool = option(True, "Whether the layer normalisation is trained.")
    use_sqrt_nnei: bool = option(True, "Divide symmetrised features by the root of the number of neighbours.")
    g1_out_conv: bool = option(True, "The convolution is an update of its own; false: a layer reads it.")
    g1_out_mlp: bool = option(
        True, "A layer on the atom's features is an update of its own; false: a layer reads them."
    )
    ln_eps: float | None = option(
        None, "Added to the variance in the layer normalisation; null is 1e-5.", check=positive
    )

    @property
    def epsilon(self) -> float:
        """What `ln_eps` means."""
        return 1e-5 if self.ln_eps is None else self.ln_eps


class DPA2Config(DescriptorConfig, key="dpa2"):
    """An environment embedding, then message passing on atoms and pairs (DPA-2)."""

    repinit: RepinitConfig = section(lambda: (RepinitConfig,), "What atoms begin with.")
    repformer: RepformerConfig = section(lambda: (RepformerConfig,), "The message passing.")
    concat_output_tebd: bool = option(True, "Append the type embedding to the features.")
    precision: str = option("default", "Precision of the computation: default, float16, float32 or float64.")
    smooth: bool = option(True, "Let all terms vanish with the switch function.")
    exclude_types: tuple[tuple[int, int], ...] = option(
        (), "Pairs of types that do not see each other in this descriptor."
    )
    env_protection: float = option(
        0.0, "Added to every distance in the environment matrix, against division by zero.", unit="Å", check=at_least(0)
    )
    trainable: bool = option(True, "Whether the descriptor is trained.")
    seed: Any = option(None, "Seed of the initial weights; null is random.")
    add_tebd_to_repinit_out: bool = option(
        False,
        "Add the embedded type of the centre to what atoms begin with.",
        aliases=("repformer_add_type_ebd_to_seq",),
    )
    use_econf_tebd: bool = option(False, "Embed the elements' electron configurations instead of one row per type.")
    use_tebd_bias: bool = option(False, "Whether the type embedding has a bias.")

    def tolerates_overlap(self) -> bool:
        return self.env_protection > 0.0 and not self.repformer.direct_dist

    def sizes(self) -> str:
        flow = self.repformer
        layers = "1 layer" if flow.nlayers == 1 else f"{flow.nlayers} layers"
        return f"{layers}, widths {flow.g1_dim} of atoms, {flow.g2_dim} of pairs"

    def capacities(self) -> tuple[Capacity, ...]:
        first, flow = self.repinit, self.repformer
        found = [
            Capacity(option="repinit.nsel", value=first.nsel, rcut=first.rcut, typed=False),
            Capacity(option="repformer.nsel", value=flow.nsel, rcut=flow.rcut, typed=False),
        ]
        if first.use_three_body or isinstance(first.three_body_sel, str):
            rcut = first.three_body_rcut
            found.append(Capacity(option="repinit.three_body_sel", value=first.three_body_sel, rcut=rcut, typed=False))
        return tuple(found)

    def with_capacities(self, values: Sequence[tuple[int, ...]]) -> DPA2Config:
        first: dict[str, int] = {"nsel": values[0][0]}
        if len(values) > 2:
            first["three_body_sel"] = values[2][0]
        return self.replace(repinit=self.repinit.replace(**first), repformer=self.repformer.replace(nsel=values[1][0]))

    def check(self) -> None:
        """Raise InputError where options contradict each other."""
        first, flow = self.repinit, self.repformer
        rules = [
            (first.rcut_smth < first.rcut, f"repinit: rcut_smth = {first.rcut_smth} must be below rcut = {first.rcut}"),
            (flow.rcut_smth < flow.rcut, f"repformer: rcut_smth = {flow.rcut_smth} must be below rcut = {flow.rcut}"),
            (
                flow.rcut < first.rcut,
                f"the rcut of repformer ({flow.rcut}) must be below that of repinit ({first.rcut})",
            ),
            (
                0 < first.axis_neuron <= (first.neuron or (0,))[-1],
                f"repinit: axis_neuron = {first.axis_neuron} must be at most the last of neuron = {list(first.neuron)}",
            ),
            (
                flow.axis_neuron <= min(flow.g1_dim, flow.g2_dim),
                f"repformer: axis_neuron = {flow.axis_neuron} must not exceed g1_dim and g2_dim",
            ),
        ]
        read = not flow.g1_out_mlp or flow.update_g1_has_grrg or flow.update_g1_has_drrd
        read = read or (flow.update_g1_has_conv and not flow.g1_out_conv)
        rules.append((read, "repformer: set update_g1_has_grrg or update_g1_has_drrd, or g1_out_mlp to false"))
        lists = [(first.rcut, first.nsel, "repinit"), (flow.rcut, flow.nsel, "repformer")]
        if first.use_three_body:
            lists.append((first.three_body_rcut, first.three_body_sel, "three-body"))
            low, high = first.three_body_rcut_smth, first.three_body_rcut
            rules.append((low < high, f"repinit: three_body_rcut_smth = {low} must be below three_body_rcut = {high}"))
        known = sorted(entry for entry in lists if not isinstance(entry[1], str))
        for (_, small, one), (_, large, other) in itertools.pairwise(known):
            rules.append((small <= large, f"the longer cutoff of {other} has a smaller capacity than that of {one}"))
        for holds, message in rules:
            if not holds:
                raise InputError(message)

    def build(self, ntypes: int, type_map: tuple[str, ...], *, seed: Seed = None) -> DPA2:
        """Capacities must be resolved (numbers). `seed` is used where the section names none."""
        self.check()
        return fresh(self, ntypes, type_map, seed)
