"""Muon equals torch's for matrices and Adam for the rest, and its steps are as large as its papers state."""

from __future__ import annotations

import copy

import pytest
import torch

from envs_gpu.vec_env import EnvSpec
from pi_incubator.config import ExperimentConfig
from pi_incubator.layers.mlp import mlp
from pi_incubator.training.adam import Adam
from pi_incubator.training.compiled import compiled_step
from pi_incubator.training.muon import Muon, make_optimizer, output_weights
from tests.envs import StillEnv
from tests.learning import make_algorithm

LR = 0.02
SOUND = torch.tensor(True)


def draw_gradients(weights: list[torch.Tensor], seed: int) -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return [torch.randn(weight.shape, generator=draw) for weight in weights]


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_step_is_that_of_torch(compiled: bool) -> None:
    """Tall, wide and transposed matrices move as by torch.optim.Muon; a vector, a matrix with one row and an
    output layer as by torch.optim.Adam; with a learning rate that changes."""
    torch.manual_seed(0)
    shapes = [(12, 5), (4, 9), (6, 3), (7,), (1, 8), (3, 6)]
    weights = [torch.randn(shape) for shape in shapes]
    ours, lr = copy.deepcopy(weights), torch.tensor(LR)
    optimizer = Muon(ours, lr, outputs=[ours[-1]])

    def take(*gradients: torch.Tensor) -> torch.Tensor:
        optimizer.step(gradients, SOUND)
        return gradients[0].sum()

    step = compiled_step(take) if compiled else take
    matrices = [torch.nn.Parameter(matrix) for matrix in weights[:3]]
    rest = [torch.nn.Parameter(weight) for weight in weights[3:]]
    theirs = torch.optim.Muon(matrices, lr=LR, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
    adam = torch.optim.Adam(rest, lr=LR)
    for number in range(4):
        for group in (*theirs.param_groups, *adam.param_groups):
            group["lr"] = LR / (number + 1)
        lr.fill_(LR / (number + 1))
        gradients = draw_gradients(weights, number)
        gradients[0] = gradients[0].t().contiguous().t()  # as autograd may give it
        step(*gradients)
        for parameter, gradient in zip([*matrices, *rest], gradients, strict=True):
            parameter.grad = gradient.clone()
        theirs.step()
        adam.step()
    for weight, reference in zip(ours, [*matrices, *rest], strict=True):
        # Inductor rounds to bfloat16 less often.
        tolerance = 0.05 * LR if compiled else 1e-6
        torch.testing.assert_close(weight, reference.detach(), rtol=1e-5, atol=tolerance)


def test_stacked_networks_move_as_each_does_alone() -> None:
    """Their first dimension counts networks: their biases are vectors, though they have two dimensions."""
    torch.manual_seed(0)
    stacked = [torch.randn(2, 6, 3), torch.randn(2, 6), torch.randn(2, 1, 6)]
    alone = [[weight[number].clone() for weight in stacked] for number in range(2)]
    gradients = draw_gradients(stacked, 0)
    Muon(stacked, torch.tensor(LR), stacked=stacked).step(gradients, SOUND)
    for number, weights in enumerate(alone):
        Muon(weights, torch.tensor(LR)).step([gradient[number] for gradient in gradients], SOUND)
        for weight, part in zip(weights, stacked, strict=True):
            torch.testing.assert_close(part[number], weight)


@pytest.mark.parametrize("shape", [(100, 64), (128, 48), (48, 128)])
def test_a_step_is_as_large_as_one_of_adam(shape: tuple[int, int]) -> None:
    """All singular values are near one (Jordan 2024: from 0.7 to 1.2), so the root mean square of a step is
    0.2 of the learning rate (Liu et al. 2025): checked against a singular value decomposition in float64."""
    weight = torch.zeros(shape)
    (gradient,) = draw_gradients([weight], 0)
    Muon([weight], torch.tensor(LR)).step([gradient], SOUND)
    step = weight.double() / LR
    left, _, right = torch.linalg.svd(gradient.double(), full_matrices=False)
    singular = (left.T @ -step @ right.T) / (0.2 * max(shape) ** 0.5)
    diagonal = singular.diagonal()
    assert 0.6 < diagonal.min() < diagonal.max() < 1.3
    assert (singular - diagonal.diag()).abs().max() < 0.05
    assert 0.15 < step.square().mean().sqrt() < 0.25


def test_it_continues_where_it_was_saved() -> None:
    """From a saved state the next steps are the same bits."""
    torch.manual_seed(0)
    weights = [torch.randn(5, 4), torch.randn(4)]
    optimizer = Muon(weights, torch.tensor(LR))
    optimizer.step(draw_gradients(weights, 0), SOUND)
    saved = {name: value.clone() for name, value in optimizer.state_dict().items()}
    others = copy.deepcopy(weights)
    continued = Muon(others, torch.tensor(LR))
    continued.load_state_dict(saved)
    for pair in ((weights, optimizer), (others, continued)):
        pair[1].step(draw_gradients(weights, 1), SOUND)
    assert all(map(torch.equal, weights, others))
    assert {name.partition(".")[0] for name in saved} == {"muon", "adam"}


def test_the_last_layer_is_left_to_adam() -> None:
    network = mlp([5, 8, 8, 3], torch.nn.ELU, 1.0)
    (last,) = output_weights(network)
    assert last is network[-1].weight
    optimizer = make_optimizer("muon", list(network.parameters()), torch.tensor(LR), [last])
    assert isinstance(optimizer, Muon)
    assert [tuple(weight.shape) for weight in optimizer.matrices] == [(8, 5), (8, 8)]
    assert isinstance(make_optimizer("adam", list(network.parameters()), torch.tensor(LR)), Adam)


@pytest.mark.parametrize("name", ["ppo", "sac", "td3"])
def test_algorithms_leave_heads_and_vectors_to_adam(name: str) -> None:
    """Of policy and critics alone the matrices of hidden layers are Muon's, both critics' at once."""
    limits = (-1.0, -1.0), (1.0, 1.0)
    spec = EnvSpec("toy", 4, {"policy": 3}, 2, *limits, ("a", "b"), 50.0, 100, torch.device("cpu"))
    sections = {
        "env": {"num_envs": 4},
        "network": {"hidden_sizes": [8, 8]},
        "algorithm": {"name": name, "optimizer": "muon"},
    }
    if name == "ppo":
        sections["algorithm"] |= {"horizon": 4, "minibatch_size": 8}
    algorithm = make_algorithm(ExperimentConfig.model_validate(sections), StillEnv(spec))
    if name == "ppo":
        optimizers, shapes = [algorithm.optimizer], [[(8, 3), (8, 8), (8, 3), (8, 8)]]
    else:
        optimizers = [algorithm.actor_optimizer, algorithm.critic_optimizer]
        shapes = [[(8, 3), (8, 8)], [(2, 8, 5), (2, 8, 8)]]
    assert [[tuple(w.shape) for w in optimizer.matrices] for optimizer in optimizers] == shapes


def test_recurrent_encoders_of_critics_move_by_muon_too():
    """The critics share one encoder, whose matrices are single ones beside the stacked heads."""
    limits = (-1.0, -1.0), (1.0, 1.0)
    spec = EnvSpec("toy", 4, {"policy": 3}, 2, *limits, ("a", "b"), 50.0, 100, torch.device("cpu"))
    windows = {"replay": "sequences", "sequence_length": 2, "burn_in": 1, "batch_size": 8}
    sections = {"env": {"num_envs": 4}, "network": {"name": "gru", "hidden_sizes": [8, 6]}}
    sections |= {"algorithm": {"name": "sac", "optimizer": "muon"} | windows}
    sac = make_algorithm(ExperimentConfig.model_validate(sections), StillEnv(spec))
    of_actor, of_critics = (
        {tuple(weight.shape) for weight in optimizer.matrices}
        for optimizer in (sac.actor_optimizer, sac.critic_optimizer)
    )
    of_encoder = {
        tuple(weight.shape) for weight in sac.critic_features.encoder.parameters() if weight.ndim == 2
    }
    assert of_encoder
    assert of_encoder <= of_actor & of_critics
