"""Training on several processes: the world they form, and how they share a model.

=====  ============  =====================================================================================
stage  store         each rank holds between steps, of parameters, gradients and optimizer state
=====  ============  =====================================================================================
0      `Replicas`    all of the three
1      `Shares`      parameters and gradients whole, of the optimizer the state of its own parameters
2, 3   `Sharded`     its part of all three (FSDP2)
=====  ============  =====================================================================================

Gradients are means over ranks and batches, exchanged after the backward pass by collectives of our own. No hook of DDP
or FSDP2 takes part in a step: forces are differentiated inside the forward pass, and hooks on the autograd graph would
fire in that inner pass, in an order that depends on threads (see `sharded`).
"""

from __future__ import annotations

from .world import TorchWorld, join

__all__ = ["TorchWorld", "join"]
