"""What a model computes on the way to its output: descriptors, and the last hidden layer of its fitting net."""

from __future__ import annotations

from dpmodel.errors import InputError
from dpmodel.fittings.base import Output
from dpmodel.graph import Graph, NeighbourRequest
from dpmodel.models.base import Model
from dpmodel.models.spin import SpinModel
from dpmodel.models.standard import StandardModel
from dpmodel.op import Array, child
from dpmodel.ops import take_rows

__all__ = ["Probe"]


class Probe(Model):
    """A model that shows its features. It takes the graphs of the model inside, on every backend that runs models."""

    inner: StandardModel = child()
    """Standard model, or the backbone of a spin model."""

    @classmethod
    def of(cls, model: Model) -> Probe:
        """The probe of a model. Raises InputError for models that do not have one descriptor and one fitting net."""
        inner = model.backbone if isinstance(model, SpinModel) else model
        if not isinstance(inner, StandardModel):
            raise InputError(
                f"features: a {type(model).__name__} has no descriptor of its own; take those of its parts "
                "(dpmodel.Potential.from_model(potential.model.parts[0]))"
            )
        return cls(inner=inner, type_map=model.type_map)

    def output(self) -> Output:
        return Output(name="descriptor", atomic="descriptor", reduced="", shape=(), differentiable=False)

    def requests(self) -> tuple[NeighbourRequest, ...]:
        return self.inner.requests()

    def groups_types(self) -> bool:
        return self.inner.groups_types()

    @property
    def message_passing(self) -> bool:
        return self.inner.message_passing

    def bytes_per_atom(self) -> int:
        return self.inner.bytes_per_atom()

    def call(self, graph: Graph) -> dict[str, Array]:
        """`descriptor` (n, width) and `fitting_feature` (n, width) of the n atoms that the user knows."""
        fitting = self.inner.fitting
        features = self.inner.descriptor(graph, rotation=False)
        outputs = {"descriptor": features.node, "fitting_feature": fitting.hidden(features, graph)}
        if graph.virtual is None:
            return outputs
        rows = take_rows(graph.virtual.real, graph.virtual.owned)
        return {key: take_rows(value, rows) for key, value in outputs.items()}
