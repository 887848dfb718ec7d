"""How options are drawn that are no flags and have no list of choices.

A rule gets the options of its section (`random_models.Options`); `o["name"]` is the value of another one, drawn now if it
has not been.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from dpmodel.descriptors import CONFIGS as DESCRIPTORS
from dpmodel.descriptors import HybridConfig
from dpmodel.descriptors.environment import TypedConfig
from dpmodel.fittings import CONFIGS as FITTINGS
from dpmodel.geometry import neighbour_counts
from dpmodel.models.config import LinearConfig, ModelConfig, PairTableConfig, SpinConfig
from dpmodel.nn.activation import ACTIVATIONS

if TYPE_CHECKING:
    from .random_models import Options

__all__ = ["ONE_VALUE", "RULES", "SMALLEST_SCALE", "VECTORS", "Rule"]

Rule = Callable[["Options"], Any]
VECTORS = ("se_e2_a", "dpa1", "se_atten_v2", "dpa2", "dpa3")
"""Descriptors that dipoles and polarizabilities can be had of."""
ONE_VALUE = ("SeRConfig.type_one_side",)
"""Options with one legal value."""
SMALLEST_SCALE = 0.2
"""Å per unit of spin."""


def _any_of(*values: Any) -> Rule:
    return lambda o: o.rng.choice(values)


def _number(low: float, high: float) -> Rule:
    return lambda o: round(o.rng.uniform(low, high), 3)


def _whole(low: int, high: int) -> Rule:
    return lambda o: o.rng.randint(low, high)


def _flag(o: Options) -> bool:
    return o.rng.random() < 0.5


_small = _number(-2.0, 2.0)


def _or_none(rule: Rule, share: float = 0.5) -> Rule:
    """None, or with a probability of `share` what the rule draws."""
    return lambda o: rule(o) if o.rng.random() < share else None


def _list(rule: Rule, count: int) -> Rule:
    return lambda o: [rule(o) for _ in range(count)]


def _by_type(rule: Rule) -> Rule:
    return lambda o: [rule(o) for _ in o.scene.types]


def _start(cutoff: str) -> Rule:
    """Where a switch function begins to fall."""
    return lambda o: _number(0.2, o[cutoff] - 0.8)(o)


def _where(condition: Callable[[Options], bool], rule: Rule, other: Any) -> Rule:
    return lambda o: rule(o) if condition(o) else other


def _with_table(rule: Rule) -> Rule:
    return _where(lambda o: o["_kind"] == "zbl", rule, None)


def _numb(name: str) -> Rule:
    return lambda o: o.rng.choice([0, getattr(o.scene, name)])


def _below(name: str) -> Rule:
    """A section with one kind of options."""
    return lambda o: o.of(o.kind.options()[name].metadata["option"].kinds()[0])


# --- descriptors ---------------------------------------------------------------------------------------


def _pairs(o: Options) -> list[list[int]]:
    count = o.rng.choice([0, 0, 1, 2])
    return [[o.rng.randrange(o.scene.ntypes) for _ in range(2)] for _ in range(count)]


def _precision(o: Options) -> str:
    found: str = o.rng.choice(["default", "float64", *(["float32"] * 2 if o.scene.single else [])])
    return found


def _compression(o: Options) -> tuple[int, int, bool]:
    """a_compress_rate, a_compress_e_rate, a_compress_use_split that fit to the widths."""
    found = [(0, 1, False), (0, 2, True)]
    for c in (1, 2):
        for e in (1, 2):
            narrow, thin = o["a_dim"] // c, o["a_dim"] // (2 * c) * e
            if (o["a_dim"] * e) % (2 * c) == 0 and min(narrow, thin) > 0:
                found.append((c, e, False))
                if narrow <= o["n_dim"] and thin <= o["e_dim"]:
                    found.append((c, e, True))
    return o.rng.choice(found)


def _is_read(o: Options) -> bool:
    """Whether the first layer of an atom's update reads anything but the features of pairs."""
    return not o["g1_out_mlp"] or o["update_g1_has_drrd"] or (o["update_g1_has_conv"] and not o["g1_out_conv"])


def _descriptor(o: Options) -> Options:
    scene = dataclasses.replace(o.scene, spin=o["_shift"]) if o["_kind"] == "spin" else o.scene
    return o.of(o.rng.choice(o.get("_kinds", DESCRIPTORS)), scene)


def _hybrid(o: Options) -> list[Options]:
    kinds = [kind for kind in DESCRIPTORS if kind is not HybridConfig]
    return [o.of(o.rng.choice(kinds)) for _ in range(o.rng.randint(2, 3))]


# --- fitting nets --------------------------------------------------------------------------------------


def _fitting(o: Options) -> Options:
    """Energies count double, and are all that there is with spins, tables and in sums."""
    kind: Options = o["descriptor"]
    parts = kind["list"] if kind.kind is HybridConfig else [kind]
    vectors = any(part.kind.key in VECTORS for part in parts)
    energies = o["_kind"] in ("spin", "zbl") or o.parent is not None
    fits = [k for k in FITTINGS if (k.key == "ener" if energies else vectors or k.key not in ("dipole", "polar"))]
    return o.of(o.rng.choice([*fits, *(k for k in fits if k.key == "ener")]))


def _is_part(o: Options) -> bool:
    """Whether this fitting net is of a part of a sum."""
    return o.parent is not None and o.parent.parent is not None


def _layers(o: Options) -> Any:
    return o.rng.choice([True, False, _list(_flag, len(o["neuron"]) + 1)(o)])


# --- models --------------------------------------------------------------------------------------------


def _preset(o: Options) -> dict[str, Any] | None:
    names = {"ener": ("energy", 1), "dipole": ("dipole", 3), "polar": ("polarizability", 9)}
    if o.kind is LinearConfig:
        name, size = names["ener"]
    else:
        net: Options = o["fitting_net"]
        acts = {
            "dipole": lambda: False,
            "polar": lambda: net["shift_diag"],
            "property": lambda: net["distinguish_types"],
        }
        if net.kind.key in acts and not acts[net.kind.key]():
            return None
        others = {"dos": lambda: ("dos", net["numb_dos"]), "property": lambda: (net["property_name"], net["task_dim"])}
        name, size = names[net.kind.key] if net.kind.key in names else others[net.kind.key]()
    return None if _flag(o) or o.parent is not None else {name: _by_type(_or_none(_list(_small, size)))(o)}


def _use_spin(o: Options) -> list[Any]:
    flags = _by_type(_any_of(True, True, False))(o)
    form, chosen = o.rng.choice(["flags", "indices", "names"]), [k for k, flag in enumerate(flags) if flag]
    if form == "flags" or not chosen:
        return flags
    return chosen if form == "indices" else [o.scene.types[k] for k in chosen]


def _scale(o: Options) -> Any:
    given = o["use_spin"]
    count = sum(given) if isinstance(given[0], bool) else len(given)
    forms = [
        _number(SMALLEST_SCALE, 0.5),
        *(_list(_number(SMALLEST_SCALE, 0.5), k) for k in (count, o.scene.ntypes) if k),
    ]
    return o.rng.choice(forms)(o)


def _shift(o: Options) -> np.ndarray:
    """(f, na, 3): where virtual atoms are, none close to another atom than its own."""
    config = SpinConfig.from_dict(o["spin"].section())
    scales = np.where(config.flags(o.scene.types), config.scales(o.scene.types), 0.0)
    given, rng = o.scene.atoms, np.random.default_rng(o.scene.atoms.seed + 1)
    scale = np.where(given.atype < 0, 0.0, scales[np.maximum(given.atype, 0)])[:, :, None]
    for _ in range(200):
        spin = rng.normal(size=given.coord.shape)
        spin *= rng.uniform(0.6, 1.2, (*spin.shape[:2], 1)) / np.linalg.norm(spin, axis=-1, keepdims=True)
        moved = dataclasses.replace(given, coord=given.coord + spin * scale)
        if all(neighbour_counts(*frame, given.pbc, 1.0, n)[2] > 0.4 for *frame, n in moved.with_virtual(None)):
            break
    o["_spin"] = spin
    shift: np.ndarray = spin * scale
    return shift


def _parts(o: Options) -> list[Options]:
    """The models of a sum. Those that count neighbours by type have the types of the whole."""
    found = []
    for k in range(o.rng.randint(1, 3)):
        if k and o.rng.random() < 0.3:
            found.append(o.of(PairTableConfig))
            continue
        scene, kinds = o.scene, DESCRIPTORS
        if _flag(o):
            types = o.rng.sample([*o.scene.types, "Zn"], o.scene.ntypes + 1)
            scene = dataclasses.replace(o.scene, types=tuple(types))
            kinds = tuple(each for each in DESCRIPTORS if not issubclass(each, TypedConfig | HybridConfig))
        part = o.of(ModelConfig, scene)
        part.update(_kind="plain", _kinds=kinds)
        found.append(part)
    return found


def _table(o: Options) -> str:
    return str(o.scene.tables / f"{o.scene.ntypes}.txt")


_WIDTHS = ([3], [4], [2, 4], [3, 3], [5, 3], [2, 4, 4])

RULES: dict[str, Rule] = {
    # all descriptors
    "sel": lambda o: o.scene.capacity(o["rcut"]),
    "TypedConfig.sel": lambda o: o.scene.capacities(o["rcut"]),
    "rcut": _number(2.6, 4.0),
    "rcut_smth": _start("rcut"),
    "neuron": _any_of(*_WIDTHS),
    "axis_neuron": lambda o: _whole(1, o["neuron"][-1])(o),
    "activation_function": _any_of(*ACTIVATIONS, "silut", "silut:0.7", "custom_silu:2.0"),
    "precision": _precision,
    "seed": _any_of(None, 3, [4, 1]),
    "exclude_types": _pairs,
    "env_protection": _any_of(0.0, 0.0, 0.01, 0.2),
    "tebd_dim": _whole(1, 5),
    "use_econf_tebd": _where(lambda o: o.scene.spin is None, _flag, False),
    "ln_eps": _any_of(None, 1e-3),
    "HybridConfig.list": _hybrid,
    # dpa1
    "SeRConfig.type_one_side": _any_of(True),
    "attn": _whole(2, 4),
    "attn_layer": _whole(0, 2),
    "scaling_factor": _number(0.5, 2.0),
    "temperature": _or_none(_number(0.2, 2.0)),
    "stripped_type_embedding": _any_of(None, None, True, False),
    # dpa2
    "repinit": _below("repinit"),
    "repformer": _below("repformer"),
    "RepinitConfig.rcut": _number(3.0, 4.0),
    "RepformerConfig.rcut": lambda o: _number(2.2, o.parent["repinit"]["rcut"] - 0.2)(o),
    "nsel": lambda o: o.scene.capacity(o["rcut"]),
    "three_body_neuron": _any_of(*_WIDTHS),
    "three_body_sel": lambda o: o.scene.capacity(o["three_body_rcut"]),
    "three_body_rcut": _number(2.2, 3.5),
    "three_body_rcut_smth": _start("three_body_rcut"),
    "nlayers": _whole(1, 2),
    "g1_dim": _whole(2, 6),
    "g2_dim": _whole(2, 4),
    "RepformerConfig.axis_neuron": lambda o: _whole(1, min(o["g1_dim"], o["g2_dim"]))(o),
    "update_g1_has_grrg": lambda o: not _is_read(o) or _flag(o),
    "attn1_hidden": _whole(2, 4),
    "attn1_nhead": _whole(1, 3),
    "attn2_hidden": _whole(2, 4),
    "attn2_nhead": _whole(1, 3),
    "update_residual": _number(0.1, 0.8),
    # dpa3
    "repflow": _below("repflow"),
    "e_rcut": _number(3.0, 4.0),
    "e_rcut_smth": _start("e_rcut"),
    "e_sel": lambda o: o.scene.capacity(o["e_rcut"]),
    "a_rcut": lambda o: _number(2.0, o["e_rcut"])(o),
    "a_rcut_smth": _start("a_rcut"),
    "a_sel": lambda o: o.scene.capacity(o["a_rcut"]),
    "n_dim": _whole(2, 6),
    "e_dim": _whole(2, 5),
    "a_dim": _whole(2, 5),
    "_compression": _compression,
    "a_compress_rate": lambda o: o["_compression"][0],
    "a_compress_e_rate": lambda o: o["_compression"][1],
    "a_compress_use_split": lambda o: o["_compression"][2],
    "n_multi_edge_message": _whole(1, 2),
    "RepflowConfig.axis_neuron": lambda o: _whole(1, min(o["n_dim"], o["e_dim"]))(o),
    "fix_stat_std": _any_of(0.0, 0.3),
    "use_dynamic_sel": lambda o: o["smooth_edge_update"] and _flag(o),
    "sel_reduce_factor": _number(2.0, 10.0),
    "sequential_update": _where(lambda o: o["update_style"] == "res_residual" and o["update_angle"], _flag, False),
    "default_chg_spin": _any_of(None, [1, 2], [-1.0, 0.0]),
    # fitting nets
    "FittingConfig.neuron": _any_of([], *_WIDTHS),
    "FittingConfig.trainable": _layers,
    "numb_fparam": _numb("fparam"),
    "numb_aparam": _numb("aparam"),
    "default_fparam": lambda o: _or_none(_list(_small, o["numb_fparam"]))(o) if o["numb_fparam"] else None,
    "dim_case_embd": _whole(0, 2),
    "atom_ener": lambda o: [] if _flag(o) or _is_part(o) else _by_type(_or_none(_small))(o),
    "numb_dos": _whole(1, 4),
    "property_name": _any_of("property", "band_gap"),
    "task_dim": _whole(1, 3),
    "PolarFittingConfig.scale": lambda o: (_small if _flag(o) else _by_type(_small))(o),
    # models
    "_kind": _any_of("plain", "plain", "plain", "spin", "zbl"),
    "type_map": lambda o: list(o.scene.types),
    "data_stat_nbatch": _where(lambda o: o.parent is None, _whole(1, 10), 10),
    "data_stat_protect": _where(lambda o: o.parent is None, _any_of(0.01, 0.001), 0.01),
    "pair_exclude_types": _where(lambda o: o.parent is None, _pairs, []),
    "atom_exclude_types": lambda o: [o.rng.randrange(o.scene.ntypes)] if o.rng.random() < 0.1 * o.scene.ntypes else [],
    "preset_out_bias": _preset,
    "model_branch_alias": _where(lambda o: o.parent is None, _any_of([], ["water"]), []),
    "finetune_head": _where(lambda o: o.parent is None, _any_of(None, "water"), None),
    "info": _any_of({}, {"note": 1}),
    "descriptor": _descriptor,
    "fitting_net": _fitting,
    "spin": _where(lambda o: o["_kind"] == "spin", _below("spin"), None),
    "_shift": _shift,
    "use_spin": _use_spin,
    "virtual_scale": _scale,
    "use_srtab": _with_table(_table),
    "smin_alpha": _with_table(_or_none(_number(0.1, 0.5))),
    "sw_rmin": _with_table(_number(0.2, 1.2)),
    "sw_rmax": _with_table(_number(1.5, 3.0)),
    "models": _parts,
    "weights": lambda o: o.rng.choice(["mean", "sum", _list(_small, len(o["models"]))(o)]),
    "tab_file": _table,
    "PairTableConfig.rcut": _number(2.6, 4.0),
    "PairTableConfig.sel": lambda o: o.rng.choice([o.scene.capacity(o["rcut"]), o.scene.capacities(o["rcut"])]),
}
"""By option, or by class and option, what draws it. Names that begin with "_" are shared by several."""
