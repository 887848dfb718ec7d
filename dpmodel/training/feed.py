"""`Feed`: what one task gives to the loop, and how far it is in it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from dpmodel.data.sampler import Sampler
from dpmodel.errors import DPError
from dpmodel.geometry.build import GraphBuilder
from dpmodel.training.batches import Prepared, prepare

__all__ = ["Feed"]


@dataclasses.dataclass(kw_only=True)
class Feed:
    """The batches of one task. Those of training come in one order, looked at before or not."""

    builder: GraphBuilder
    atomic_labels: frozenset[str]
    training: Sampler
    validation: Sampler | None = None
    validation_batches: int = 0
    _ahead: Prepared | None = None

    def next(self) -> Prepared:
        """The next training batch. Raises DataError naming a frame of which no graph can be made."""
        batch, self._ahead = self._ahead, None
        return self._draw(self.training) if batch is None else batch

    def peek(self) -> Prepared:
        """The training batch that `next` will give: for numbers of a task that is not trained in a step."""
        if self._ahead is None:
            self._ahead = self._draw(self.training)
        return self._ahead

    def check(self) -> Prepared:
        """The next validation batch."""
        assert self.validation is not None
        return self._draw(self.validation)

    def state(self) -> dict[str, Any]:
        """Plain data to go on from, the same on every process."""
        training = self.training.state()
        if self._ahead is not None:  # it is drawn, and not trained yet
            training["drawn"] -= 1
        return {"training": training, "validation": None if self.validation is None else self.validation.state()}

    def restore(self, state: Mapping[str, Any], place: str = "training") -> None:
        """Go on from there. Raises InputError or ModelFileError naming the section below `place`."""
        self._ahead = None
        _restore(self.training, state.get("training"), f"{place}.training_data")
        if self.validation is not None and state.get("validation") is not None:
            _restore(self.validation, state["validation"], f"{place}.validation_data")

    def _draw(self, sampler: Sampler) -> Prepared:
        batch = sampler.next()
        return prepare(batch, self.builder, self.atomic_labels, sampler.place(batch))


def _restore(sampler: Sampler, state: Any, name: str) -> None:
    try:
        sampler.restore({} if state is None else state)
    except DPError as problem:
        raise type(problem)(f"--restart: {name}: {problem}") from problem
