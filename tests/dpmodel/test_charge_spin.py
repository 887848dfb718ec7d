"""Total charge and spin: the embedding, and the input of `evaluate` and of the ASE calculator."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dpmodel.errors import InputError
from dpmodel.input.sections import ModelConfig
from dpmodel.models.build import build_model
from dpmodel.nn import Activation
from dpmodel.nn.charge_spin import make_charge_spin
from dpmodel.potential import Potential

COORD = np.array([[0.0, 0.1, 0.0], [1.0, 0.2, 0.0], [-0.3, 1.1, 0.3]])


def potential(**options: Any) -> Potential:
    flow = {
        "e_rcut": 3.0, "e_rcut_smth": 1.0, "e_sel": 8, "a_rcut": 2.0, "a_rcut_smth": 0.5, "a_sel": 4, "n_dim": 4, "e_dim": 4,
        "a_dim": 2, "nlayers": 1,
    }  # fmt: skip
    section = {
        "type_map": ["O", "H"], "descriptor": {"type": "dpa3", "repflow": flow, **options}, "fitting_net": {"neuron": [4]},
    }  # fmt: skip
    return Potential.from_model(build_model(ModelConfig.from_dict(section), seed=1), "numpy")


def energies(pot: Potential, charge_spin: Any = None, frames: int = 2) -> np.ndarray:
    out = pot.evaluate(np.tile(COORD, (frames, 1, 1)), ["O", "H", "H"], charge_spin=charge_spin)
    return out["energy"][:, 0]


EMBEDS = {"add_chg_spin_ebd": True}


def test_the_embedding() -> None:
    """Rows charge + 100 and spin of two tables, whose last row is zero."""
    op = make_charge_spin(3, Activation(name="tanh"), seed=2, dtype="float64", trainable=True)
    values = np.array([[-100.0, 0.0], [99.0, 99.0], [100.0, 100.0], [0.9, 1.9], [-0.9, 0.0]])
    rows = [(0, 0), (199, 99), (None, None), (100, 1), (100, 0)]
    charge, spin = (part.embedding.layers[0].w for part in (op.charge, op.spin))
    joined = np.array([
        [*(np.zeros(3) if c is None else charge[c]), *(np.zeros(3) if s is None else spin[s])] for c, s in rows
    ])  # fmt: skip
    np.testing.assert_allclose(op(values), np.tanh(joined @ op.mix.w + op.mix.b), rtol=1e-14)


def test_one_pair_for_all_frames_or_one_for_each() -> None:
    pot = potential(**EMBEDS)
    one, two = energies(pot, [1, 2]), energies(pot, [[1, 2], [-1, 2]])
    assert one[0] == one[1] == two[0] != two[1]
    assert energies(pot, [[1.7, 2.2], [-1.7, 2.9]]).tolist() == two.tolist()  # truncated
    assert energies(pot, [0.9, 0.0])[0] == energies(pot, [-0.9, 0.0])[0] == energies(pot, [0, 0])[0]


def test_a_default() -> None:
    pot = potential(**EMBEDS, default_chg_spin=[-1.0, 2.0])
    assert energies(pot)[0] == energies(pot, [-1, 2])[0] != energies(pot, [0, 2])[0]
    assert (pot.model.takes_charge_spin, pot.model.default_charge_spin) == (True, (-1.0, 2.0))


@pytest.mark.parametrize(
    ("options", "value", "says"),
    [
        (EMBEDS, None, "charge_spin is missing: this model takes charge and spin of every frame and has no default"),
        (EMBEDS, [1.0], r"charge_spin: expected shape \(2, 2\) or \(2,\), got \(1,\)"),
        (EMBEDS, [[0, 0]] * 3, r"charge_spin: expected shape \(2, 2\) or \(2,\), got \(3, 2\)"),
        (EMBEDS, [[0, 0], [101, 0]], r"from -100 to 100 and spins from 0 to 100, got \[101.0, 0.0\] in frame 1"),
        (EMBEDS, [-101.0, 0.0], "charge_spin: expected charges from -100 to 100"),
        (EMBEDS, [0.0, -1.0], "charge_spin: expected charges from -100 to 100"),
        (EMBEDS, [0.0, 101.0], "charge_spin: expected charges from -100 to 100"),
        (EMBEDS, [0.0, np.nan], "charge_spin holds NaN or infinite numbers"),
        (EMBEDS, ["a", "b"], "charge_spin: expected real numbers"),
        ({}, [0, 1], "charge_spin was given, but this model does not take it; leave it out"),
        ({"default_chg_spin": [0.0, 1.0]}, [0, 1], "charge_spin was given, but this model does not take it"),
    ],
)
def test_what_is_wrong_is_named(options: dict[str, Any], value: Any, says: str) -> None:
    pot = potential(**options)
    with pytest.raises(InputError, match=says):
        energies(pot, value)


def test_the_ends_of_the_tables() -> None:
    pot = potential(**EMBEDS)
    found = energies(pot, [[100, 100], [-100.9, 0.0]])
    assert np.isfinite(found).all()
    with pytest.raises(InputError):
        energies(pot, [-101, 0])


def test_calculator() -> None:
    ase = pytest.importorskip("ase")
    pot = potential(**EMBEDS)
    atoms = ase.Atoms("OHH", COORD)
    atoms.calc = pytest.importorskip("dpmodel.ase").Calculator(pot)
    with pytest.raises(InputError, match="charge_spin is missing"):
        atoms.get_potential_energy()
    found = []
    for pair in ([1, 2], [0, 1]):
        atoms.info["charge_spin"] = pair
        found.append(atoms.get_potential_energy())
    assert found == [energies(pot, [1, 2], 1)[0], energies(pot, [0, 1], 1)[0]]
    assert found[0] != found[1]
