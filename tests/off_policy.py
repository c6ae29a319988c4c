"""What tests of off-policy algorithms share: a toy env, an algorithm on it, and a minibatch."""

import torch
from tensordict import TensorDict

from envs_gpu.vec_env import EnvSpec
from pi_incubator.config import ExperimentConfig
from tests.envs import StillEnv
from tests.learning import make_algorithm

CPU = torch.device("cpu")
B, D, A = 32, 3, 2
LOW, HIGH = (-1.0, -3.0), (1.0, 0.5)
SPEC = EnvSpec("toy", 4, {"policy": D}, A, LOW, HIGH, ("a", "b"), 50.0, 100, CPU)


def make_learner(algorithm, network, **compute):
    """The algorithm of these sections on four worlds in which nothing happens."""
    torch.manual_seed(0)
    sizes = {"batch_size": B, "buffer_size": 1000}
    sections = {"env": {"num_envs": 4}, "network": network, "algorithm": sizes | algorithm}
    return make_algorithm(ExperimentConfig.model_validate(sections | {"compute": compute}), StillEnv(SPEC))


def make_minibatch(seed=0):
    """Every fourth step terminates, every fourth is truncated, returns are of one to three steps."""
    random = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(B, *shape, generator=random)

    low, high = torch.tensor(LOW), torch.tensor(HIGH)
    contents = {
        "obs.policy": 2.0 + 3.0 * draw(D),
        "next.policy": 2.0 + 3.0 * draw(D),
        "action": low + (high - low) * draw(A).sigmoid(),
        "reward": draw(),
        "terminated": torch.arange(B) % 4 == 0,
        "truncated": torch.arange(B) % 4 == 1,
        "valid": torch.ones(B, dtype=torch.bool),
        "noise": draw(2, A),
        "num_steps": 1 + torch.arange(B) % 3,
    }
    return TensorDict(contents, batch_size=[B])


def squash(outputs, noise, low, high=2.0):
    """Action in (-1, 1) `[B, A]` and the logarithm of its density `[B]`, from a policy's outputs.

    `low` and `high` bound the logarithm of the standard deviation.
    """
    loc, raw = outputs.chunk(2, -1)
    scale = (low + 0.5 * (high - low) * (raw.tanh() + 1.0)).exp()
    before = loc + scale * noise
    gaussian = torch.distributions.Normal(loc, scale).log_prob(before)
    jacobian = torch.distributions.TanhTransform().log_abs_det_jacobian(before, before.tanh())
    return before.tanh(), (gaussian - jacobian).sum(-1)


def unit_action(steps):
    """The actions of a minibatch, in (-1, 1)."""
    low, high = torch.tensor(LOW), torch.tensor(HIGH)
    return 2 * (steps["action"] - low) / (high - low) - 1


def assert_close(ours, theirs):
    """Tensors of the same order, to the rounding of float64."""
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-11)
