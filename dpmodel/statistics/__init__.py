"""Statistics of the training data: normalisation of inputs and bias of outputs. Caches: `dpmodel.statistics.cache`."""

from dpmodel.statistics.environment import (
    environment_items,
    environment_mean_and_deviation,
    item_names,
)
from dpmodel.statistics.items import StatItem
from dpmodel.statistics.output_bias import (
    Bias,
    atomic_bias,
    common_bias,
    frame_bias,
    merge_bias,
    type_counts,
    without_prediction,
)
from dpmodel.statistics.parameters import mean_and_inverse_deviation, parameter_items

__all__ = [
    "Bias",
    "StatItem",
    "atomic_bias",
    "common_bias",
    "environment_items",
    "environment_mean_and_deviation",
    "frame_bias",
    "item_names",
    "mean_and_inverse_deviation",
    "merge_bias",
    "parameter_items",
    "type_counts",
    "without_prediction",
]
