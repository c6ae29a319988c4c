"""Muon for matrices, and Adam for the rest, as one function of gradients like `training.adam`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.optim._muon import muon  # the function behind torch.optim.Muon, which reads the rate on the host

from pi_incubator.layers.mlp import OutputLayer
from pi_incubator.training.adam import Adam

MOMENTUM = 0.95
COEFFICIENTS, NUM_ITERATIONS, EPS = (3.4445, -4.7750, 2.0315), 5, 1e-7
"""Of the Newton-Schulz iteration, as Jordan 2024 has them."""


class Muon:
    """Keller Jordan 2024, "Muon: An optimizer for hidden layers in neural networks", by torch's own function.

    A matrix moves by its momentum (Nesterov's) with all singular values set to about one. A step is scaled to
    the size of Adam's, by 0.2 sqrt(max(rows, columns)) (Liu et al. 2025, arXiv 2502.16982, section 2.2), so
    learning rates of Adam fit. Vectors, output layers and convolutions are left to Adam.

    What it remembers is updated in place and never moves.

    Args:
        parameters: updated in place.
        lr: 0-dim; a tensor, so that a schedule changes it on the device and a captured graph sees the change.
        outputs: those of `parameters` that are weights of output layers.
        eps: of Adam.
        stacked: those of `parameters` whose first dimension counts networks side by side.
    """

    def __init__(
        self,
        parameters: Sequence[Tensor],
        lr: Tensor,
        outputs: Sequence[Tensor] = (),
        eps: float = 1e-8,
        stacked: Sequence[Tensor] = (),
    ) -> None:
        self.lr = lr
        excluded, of_several = ({id(weight) for weight in weights} for weights in (outputs, stacked))
        self.by_muon = [
            _is_matrix(weight, id(weight) in of_several) and id(weight) not in excluded
            for weight in parameters
        ]
        chosen = list(zip(parameters, self.by_muon, strict=True))
        self.matrices = [weight for weight, by_muon in chosen if by_muon]
        self.momentum = [torch.zeros_like(weight) for weight in self.matrices]
        self.adam = Adam([weight for weight, by_muon in chosen if not by_muon], lr, eps)

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor], sound: Tensor) -> None:
        """Move the parameters, given their gradients in the same order.

        Args:
            gradients: as many as parameters, of the same shapes.
            sound: 0-dim bool; where it is false not a bit changes.
        """
        chosen = list(zip(gradients, self.by_muon, strict=True))
        self.adam.step([gradient for gradient, by_muon in chosen if not by_muon], sound)
        momenta = [momentum.clone() for momentum in self.momentum]
        steps = [torch.zeros_like(weight) for weight in self.matrices]
        muon(
            _each(steps),
            _each([gradient for gradient, by_muon in chosen if by_muon]),
            _each(momenta),
            lr=1.0,
            weight_decay=0.0,
            momentum=MOMENTUM,
            nesterov=True,
            ns_coefficients=COEFFICIENTS,
            ns_steps=NUM_ITERATIONS,
            eps=EPS,
            adjust_lr_fn="match_rms_adamw",
            has_complex=False,
        )
        changes = zip(self.matrices, self.momentum, steps, momenta, strict=True)
        for weight, momentum, step, new_momentum in changes:
            weight.copy_(torch.where(sound, weight + self.lr * step, weight))
            momentum.copy_(torch.where(sound, new_momentum, momentum))

    def state_dict(self) -> dict[str, Tensor]:
        """The tensors themselves; the learning rate belongs to who schedules it."""
        momenta = {f"muon.{index}.momentum": value for index, value in enumerate(self.momentum)}
        return momenta | {f"adam.{name}": value for name, value in self.adam.state_dict().items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue from what `state_dict` gave."""
        for key, value in self.state_dict().items():
            value.copy_(state[key])


def _is_matrix(weight: Tensor, is_stacked: bool) -> bool:
    """Whether it is a matrix, or one of each network; a single row is a vector."""
    return weight.ndim == (3 if is_stacked else 2) and min(weight.shape[-2:]) > 1


def _each(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The single matrices in `tensors`, which are matrices or stacks of them, as views."""
    return [matrix for tensor in tensors for matrix in (tensor.unbind() if tensor.ndim == 3 else [tensor])]


Optimizer: TypeAlias = Adam | Muon


def make_optimizer(
    name: Literal["adam", "muon"],
    parameters: Sequence[Tensor],
    lr: Tensor,
    outputs: Sequence[Tensor] = (),
    eps: float = 1e-8,
    stacked: Sequence[Tensor] = (),
) -> Optimizer:
    """The optimizer called `name`; arguments as of `Muon`."""
    return Adam(parameters, lr, eps) if name == "adam" else Muon(parameters, lr, outputs, eps, stacked)


def output_weights(module: nn.Module) -> list[Tensor]:
    """The weights of the output layers of `module`."""
    return [layer.weight for layer in module.modules() if isinstance(layer, OutputLayer)]
