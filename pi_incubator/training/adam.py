"""Adam as one function of gradients, so that a whole optimizer step can be one compiled function."""

from __future__ import annotations

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
        if not torch.compiler.is_compiling():
            self._step(gradients, found_inf=(~sound).float())
            return
        changed = [*self.parameters, *self.mean, *self.square, *self.step_count]
        before = [tensor.clone() for tensor in changed]
        self._step(gradients, found_inf=None)
        for tensor, old in zip(changed, before, strict=True):
            tensor.copy_(torch.where(sound, tensor, old))

    def _step(self, gradients: Sequence[Tensor], found_inf: Tensor | None) -> None:
        """Torch's step; the fused kernel does nothing where `found_inf` (0-dim float) is one."""
        compiling = torch.compiler.is_compiling()
        adam(
            self.parameters,
            # The fused kernel ignores strides: it would apply a transposed gradient to the wrong weights.
            [gradient.contiguous() for gradient in gradients],
            self.mean,
            self.square,
            [],
            self.step_count,
            foreach=compiling and self.lr.is_cuda,
            capturable=compiling,
            fused=not compiling,
            found_inf=found_inf,
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


def clip_by_norm(gradients: Sequence[Tensor], max_norm: float) -> list[Tensor]:
    """Gradients scaled so that their common norm is at most `max_norm` (Pascanu et al. 2013)."""
    norm = torch.nn.utils.get_total_norm(gradients)
    scale = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    return [gradient * scale for gradient in gradients]
