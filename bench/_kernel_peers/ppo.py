"""Peers for the losses of PPO, forward and backward."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bench._kernel_peers.common import Call, Inputs, Make, import_peer, with_gradients

LEAVES = ("mean", "log_std", "value")


def torchrl_loss(inputs: Inputs) -> Call:
    """Its ClipPPOLoss on networks that hand on what they are given."""
    tensordict = import_peer("tensordict", "pip install tensordict")
    loss, normalized = _clip_ppo_loss(inputs), (inputs["advantage_mean"], inputs["advantage_rstd"])
    column = {name: inputs[name].unsqueeze(-1) for name in ("value", "old_value", "value_target")}
    data = {
        "mean": inputs["mean"],
        "value": column["value"],
        "action": inputs["action"],
        "action_log_prob": inputs["log_prob"],
        "state_value": column["old_value"],
        "value_target": column["value_target"],
    }

    def run() -> list[Tensor]:
        advantage = (inputs["advantage"] - normalized[0]) * normalized[1]
        samples = {**data, "advantage": advantage.unsqueeze(-1)}
        out = loss(tensordict.TensorDict(samples, [len(advantage)]))
        return [out[name] for name in ("loss_objective", "loss_critic", "loss_entropy")]

    return run


def _clip_ppo_loss(inputs: Inputs) -> Any:
    objectives = import_peer("torchrl.objectives", "pip install torchrl")
    modules = import_peer("torchrl.modules", "pip install torchrl")
    networks = import_peer("tensordict.nn", "pip install tensordict")

    class Head(nn.Module):
        def forward(self, mean: Tensor) -> tuple[Tensor, Tensor]:
            return mean, inputs["log_std"].exp().expand_as(mean)

    head = networks.TensorDictModule(Head(), in_keys=["mean"], out_keys=["loc", "scale"])
    sample = networks.ProbabilisticTensorDictModule(
        in_keys=["loc", "scale"],
        out_keys=["action"],
        distribution_class=modules.IndependentNormal,
        return_log_prob=True,
    )
    # Not an identity: its output replaces the old value under the same name.
    critic = networks.TensorDictModule(lambda v: v * 1.0, in_keys=["value"], out_keys=["state_value"])
    actor = networks.ProbabilisticTensorDictSequential(head, sample)
    return objectives.ClipPPOLoss(actor, critic, clip_value=inputs["clip_value"], functional=False)


def compiled_loss(inputs: Inputs) -> Call:
    """torch.compile of the losses in plain torch."""
    from kernels.ppo_loss import ppo_loss

    run = torch.compile(partial(ppo_loss, implementation="reference"), dynamic=False)
    return partial(run, **inputs)


PEERS: dict[str, dict[str, Make]] = {
    "ppo_loss": {
        "torchrl ClipPPOLoss": with_gradients(torchrl_loss, LEAVES),
        "torch.compile": with_gradients(compiled_loss, LEAVES),
    }
}
