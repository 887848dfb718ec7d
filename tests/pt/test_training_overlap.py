"""Frames that no graph can be built of end a run, with their system and number."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dpmodel.errors import DataError
from dpmodel.training.run import train

pytestmark = pytest.mark.usefixtures("one_thread")


def overlap(workshop: Any, frames: slice) -> str:
    """A system in which atoms 0 and 3 share a place in some frames."""
    path = Path(workshop.system())
    file = path / "set.000" / "coord.npy"
    coord = np.load(file).reshape(6, -1)
    coord[frames, 9:12] = coord[frames, :3]
    np.save(file, coord)
    return str(path)


@pytest.mark.parametrize("skip", [False, True])
def test_the_statistics_name_system_and_frame(workshop: Any, skip: bool) -> None:
    path = overlap(workshop, slice(None))
    with pytest.raises(DataError, match=rf"{path}, frame \d: .*at (the same|one) place"):
        train(workshop.input(path), skip_neighbor_stat=skip)
    assert [p.name for p in workshop.folder.iterdir()] == ["data"]


def test_a_step_names_system_and_frame(workshop: Any) -> None:
    good, bad = workshop.system("good"), overlap(workshop, slice(5, 6))
    data = workshop.input(good, training__validation_data={"systems": [bad], "numb_btch": 3})
    with pytest.raises(DataError, match=rf"{bad}, frame 5: atoms 0 and 4 are 0 Å apart, at one place.*sorted by type"):
        train(data)


@pytest.mark.parametrize("skip", [False, True])
def test_a_protected_environment_may_have_them(workshop: Any, skip: bool) -> None:
    path = overlap(workshop, slice(None))
    data = workshop.input(path, model__descriptor__env_protection=0.1)
    assert train(data, skip_neighbor_stat=skip, stop_at=2).exists()


@pytest.mark.parametrize("skip", [False, True])
def test_an_absurd_cutoff_ends_it_at_once(workshop: Any, skip: bool) -> None:
    path = workshop.system(natoms=27)
    data = workshop.input(path, model__descriptor__rcut=120.0)
    with pytest.raises(DataError, match=rf"{path}, frame \d: .* neighbours per atom: too many"):
        train(data, skip_neighbor_stat=skip)
