"""Adam as one function of gradients, so that a whole optimizer step can be one compiled function."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.optim.adam import adam


class Adam:
    """Kingma and Ba 2015, by torch's own function; what it remembers is updated in place and never moves.

    Args:
        parameters: updated in place.
        lr: 0-dim; a tensor, so that a schedule changes it on the device and a captured graph sees the change.
        eps: added to the root of the second moment.
        betas: decay of the two moments.
    """

    def __init__(
        self,
        parameters: Sequence[Tensor],
        lr: Tensor,
        eps: float = 1e-8,
        betas: tuple[float, float] = (0.9, 0.999),
    ) -> None:
        self.parameters = list(parameters)
        self.lr, self.eps, self.betas = lr, eps, betas
        self.step_count = [torch.zeros((), device=weight.device) for weight in self.parameters]
        self.mean = [torch.zeros_like(weight) for weight in self.parameters]
        self.square = [torch.zeros_like(weight) for weight in self.parameters]

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor], sound: Tensor) -> None:
        """Move the parameters, given their gradients in the same order.

        Args:
            gradients: as many as parameters, of the same shapes.
            sound: 0-dim bool; where it is false not a bit changes.
        """
        # Inside a compiled function the compiler fuses the operations, and torch's own kernel would be opaque
        # to it. Either way the step count stays on the device, as a captured graph needs.
        if torch.compiler.is_compiling():
            self._written_out(gradients, sound)
        else:
            self._fused(gradients, sound)

    def _written_out(self, gradients: Sequence[Tensor], sound: Tensor) -> None:
        """Algorithm 1 of the paper in the order of its section 2: the step is corrected, not the moments."""
        (beta1, beta2), step = self.betas, self.step_count[0] + 1.0
        # Not `beta ** step`: on a CPU, Inductor computes an exponential once, but a power for every vector of
        # every parameter, which takes longer than the rest.
        correction1, correction2 = (1.0 - torch.exp(step * math.log(beta)) for beta in self.betas)
        root = correction2.sqrt()
        step_size, eps = self.lr * root / correction1, self.eps * root
        fresh = list(gradients)
        mean = torch._foreach_lerp(self.mean, fresh, 1.0 - beta1)
        square = torch._foreach_mul(self.square, beta2)
        square = torch._foreach_addcmul(square, fresh, fresh, 1.0 - beta2)
        for i, weight in enumerate(self.parameters):
            moved = weight - step_size * mean[i] / (square[i].sqrt() + eps)
            weight.copy_(torch.where(sound, moved, weight))
            self.mean[i].copy_(torch.where(sound, mean[i], self.mean[i]))
            self.square[i].copy_(torch.where(sound, square[i], self.square[i]))
            self.step_count[i].add_(sound)

    def _fused(self, gradients: Sequence[Tensor], sound: Tensor) -> None:
        """Torch's kernel, which does nothing where `found_inf` (0-dim float) is one."""
        adam(
            self.parameters,
            # The fused kernel ignores strides: it would apply a transposed gradient to the wrong weights.
            [gradient.contiguous() for gradient in gradients],
            self.mean,
            self.square,
            [],
            self.step_count,
            fused=True,
            found_inf=(~sound).float(),
            amsgrad=False,
            beta1=self.betas[0],
            beta2=self.betas[1],
            lr=self.lr,
            weight_decay=0.0,
            eps=self.eps,
            maximize=False,
        )

    def state_dict(self) -> dict[str, Tensor]:
        """`INDEX.NAME` -> the tensor itself, as of torch's modules; the learning rate belongs to who
        schedules it."""
        return self._state()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue from what `state_dict` gave."""
        for key, value in self._state().items():
            value.copy_(state[key])

    def _state(self) -> dict[str, Tensor]:
        names = {"step": self.step_count, "exp_avg": self.mean, "exp_avg_sq": self.square}
        return {f"{index}.{name}": value for name, all_ in names.items() for index, value in enumerate(all_)}


def total_norm(gradients: Sequence[Tensor]) -> Tensor:
    """The norm `[]` of all gradients together."""
    # On a CPU, Inductor computes norms one by one, but calls torch for those of a list.
    return torch.nn.utils.get_total_norm(gradients, foreach=gradients[0].is_cuda)


def clip_by_norm(gradients: Sequence[Tensor], max_norm: float) -> list[Tensor]:
    """Gradients scaled so that their common norm is at most `max_norm` (Pascanu et al. 2013)."""
    norm = total_norm(gradients)
    scale = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    return [gradient * scale for gradient in gradients]
