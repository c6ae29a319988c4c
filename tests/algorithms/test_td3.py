"""TD3 against the equations of its paper (arXiv 1802.09477), written out in float64."""

import math

import pytest
import torch

from envs_gpu.vec_env import EnvSpec
from pi_incubator.config import ExperimentConfig
from pi_incubator.distributed import Distributed
from tests import off_policy
from tests.envs import StillEnv
from tests.learning import make_algorithm

CPU = torch.device("cpu")
B, D, A = 32, 3, 2
LOW, HIGH = (-1.0, -3.0), (1.0, 0.5)
SPEC = EnvSpec("toy", 4, {"policy": D}, A, LOW, HIGH, ("a", "b"), 50.0, 100, CPU)
GAMMA, TAU, STD, CLIP = 0.9, 0.25, 0.4, 0.5
SETTINGS = {
    "name": "td3",
    "gamma": GAMMA,
    "tau": TAU,
    "smoothing_std": STD,
    "smoothing_clip": CLIP,
    "reward_scale": 2.0,
    "batch_size": B,
    "buffer_size": 1000,
}


@pytest.fixture(autouse=True)
def _in_float64():
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(dtype)


def make_td3():
    """Networks that disagree with their targets, and a normalizer that has seen data."""
    torch.manual_seed(0)
    cfg = ExperimentConfig.model_validate(
        {"env": {"num_envs": 4}, "network": {"hidden_sizes": [8]}, "algorithm": SETTINGS}
    )
    td3 = make_algorithm(cfg, StillEnv(SPEC))
    with torch.no_grad():
        td3.policy.head[-1].weight.mul_(60.0)
        for target in td3.targets:
            target.add_(0.3 * torch.randn_like(target))
    td3.policy.normalizer.observe({"policy": 2.0 + 3.0 * torch.randn(100, D)})
    td3.policy.normalizer.commit()
    return td3


def make_minibatch():
    """With broken steps."""
    steps = off_policy.make_minibatch()
    steps["valid"] = torch.arange(B) % 8 != 3
    return steps


def leaves(weights):
    return {name: value.detach().clone().requires_grad_() for name, value in weights.items()}


def critics_of(stacked):
    """The weights of each critic's head by the names of a `Sequential`."""
    flat = {name: value for name, value in stacked.flatten_keys(".").items() if ".head." in f".{name}"}
    named = {name.partition("head.")[2]: value for name, value in flat.items()}
    return [leaves({name: value[index] for name, value in named.items()}) for index in range(2)]


def mlp(weights, x):
    hidden = torch.tanh(x @ weights["0.weight"].T + weights["0.bias"])
    return hidden @ weights["2.weight"].T + weights["2.bias"]


class Paper:
    """Algorithm 1 with the weights of `td3`, in plain torch; expectations are means over valid steps."""

    def __init__(self, td3):
        self.mean, self.std = (getattr(td3.policy.normalizer["policy"], name) for name in ("mean", "std"))
        self.actor = leaves(td3.policy.head.state_dict())
        target = td3.loss.target_actor_network_params.flatten_keys(".")
        self.target_actor = {
            name.partition("head.")[2]: value for name, value in target.items() if "head." in name
        }
        self.critics = critics_of(td3.loss.qvalue_network_params)
        self.target_critics = critics_of(td3.loss.target_qvalue_network_params)

    def act(self, weights, observation):
        return mlp(weights, (observation - self.mean) / self.std).tanh()

    def value(self, weights, observation, action):
        return mlp(weights, torch.cat(((observation - self.mean) / self.std, action), -1)).squeeze(-1)

    def critic_loss(self, steps):
        """Squared errors to the lesser target at a smoothed action, summed over both critics."""
        return sum(error[steps["valid"]].mean() for error in self.squared_errors(steps))

    def squared_errors(self, steps):
        """Of each critic, `[B]`."""
        low, high = torch.tensor(LOW), torch.tensor(HIGH)
        action = 2 * (steps["action"] - low) / (high - low) - 1
        with torch.no_grad():
            noise = (STD * steps["noise"][:, 1]).clip(-CLIP, CLIP)
            following = (self.act(self.target_actor, steps["next.policy"]) + noise).clip(-1.0, 1.0)
            least = torch.minimum(
                *(self.value(one, steps["next.policy"], following) for one in self.target_critics)
            )
            discount = GAMMA ** steps["num_steps"]
            target = 2.0 * steps["reward"] + discount * torch.where(steps["terminated"], 0.0, least)
        return [(self.value(one, steps["obs.policy"], action) - target) ** 2 for one in self.critics]

    def actor_loss(self, steps):
        """The first critic's value, with its sign changed."""
        action = self.act(self.actor, steps["obs.policy"])
        return -self.value(self.critics[0], steps["obs.policy"], action)[steps["valid"]].mean()


def assert_gradients(ours, theirs):
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert other.abs().max() > 0
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_the_critics_learn_from_the_lesser_target_at_a_smoothed_action():
    td3, steps = make_td3(), make_minibatch()
    paper = Paper(td3)
    gradients, report = td3._critic_gradients(steps)
    loss = paper.critic_loss(steps)
    torch.testing.assert_close(report, loss.detach().view(1), rtol=1e-10, atol=0)
    names = list(paper.critics[0])
    flat = torch.autograd.grad(loss, [critic[name] for critic in paper.critics for name in names])
    expected = [torch.stack(pair) for pair in zip(flat[: len(names)], flat[len(names) :], strict=True)]
    assert_gradients(gradients, expected)


def test_the_larger_error_of_the_critics_is_told():
    td3, steps = make_td3(), make_minibatch()
    td3._critic_gradients(steps)
    errors = Paper(td3).squared_errors(steps)
    torch.testing.assert_close(td3.surprise, torch.maximum(*errors).sqrt().detach())
    assert not td3.surprise.requires_grad  # or the graphs of all updates would be kept


def test_the_policy_climbs_the_first_critic():
    td3, steps = make_td3(), make_minibatch()
    paper = Paper(td3)
    gradients, report = td3._actor_gradients(steps)
    loss = paper.actor_loss(steps)
    torch.testing.assert_close(report, loss.detach().view(1), rtol=1e-10, atol=0)
    assert_gradients(gradients, torch.autograd.grad(loss, list(paper.actor.values())))


def test_policy_and_targets_move_at_every_second_step():
    td3, steps = make_td3(), make_minibatch()
    for moves in (True, False, True):
        actor = [weight.detach().clone() for weight in td3.actor_weights]
        critics = [weight.detach().clone() for weight in td3.critic_weights]
        targets = [target.clone() for target in td3.targets]
        td3.step(steps)
        assert not any(torch.equal(*pair) for pair in zip(critics, td3.critic_weights, strict=True))
        assert moves != all(torch.equal(*pair) for pair in zip(actor, td3.actor_weights, strict=True))
        # The critics learn after the policy and the targets have moved.
        followed = [*td3.actor_weights, *critics]
        share = TAU if moves else 0.0
        for old, target, weight in zip(targets, td3.targets, followed, strict=True):
            torch.testing.assert_close(target, (1 - share) * old + share * weight.detach())


def test_exploration_is_gaussian_and_within_the_limits():
    td3 = make_td3()
    obs, state = {"policy": torch.randn(4000, D)}, td3.policy.initial_state(4000)
    noise = torch.randn(4000, A, generator=torch.Generator().manual_seed(0))
    step, (mean, _) = td3.policy.act(obs, state, noise), td3.policy.mean(obs, state)
    low, high = torch.tensor(LOW), torch.tensor(HIGH)
    half = (high - low) / 2
    expected = torch.minimum(torch.maximum(mean + 0.1 * half * noise, low), high)
    torch.testing.assert_close(step.action, expected)
    gaussian = torch.distributions.Normal(mean, 0.1 * half).log_prob(mean + 0.1 * half * noise)
    torch.testing.assert_close(step.log_prob, gaussian.sum(-1))
    moments = td3.policy.moments(obs, state)
    torch.testing.assert_close(moments.mean, mean)
    torch.testing.assert_close(moments.std, (0.1 * half).expand(4000, A))


def test_broken_steps_are_not_learned_from():
    td3, steps = make_td3(), make_minibatch()
    spoiled = steps.clone()
    for name in ("obs.policy", "next.policy", "action", "reward", "noise"):
        spoiled[name][~steps["valid"]] = 100.0
    for differentiate in (td3._critic_gradients, td3._actor_gradients):
        clean, changed = differentiate(steps)[0], differentiate(spoiled)[0]
        for one, other in zip(clean, changed, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)


def test_a_step_that_is_not_finite_changes_no_bit_of_what_is_learned():
    td3, steps = make_td3(), make_minibatch()
    steps["reward"][5] = math.inf
    steps["obs.policy"][6] = math.nan
    learned = [*td3.actor_weights, *td3.critic_weights, *td3.targets]
    before = [weight.detach().clone() for weight in learned]
    td3.step(steps)
    assert all(torch.equal(*pair) for pair in zip(before, learned, strict=True))
    assert td3.skipped.pop() == 2


def test_worlds_explore_with_noise_between_the_least_and_the_largest():
    """Over all ranks: the second of two continues where the first ends."""
    sections = {"env": {"num_envs": 4}, "network": {"hidden_sizes": [8]}}
    sections["algorithm"] = SETTINGS | {"exploration_std": 0.4, "exploration_std_min": 0.05}
    cfg = ExperimentConfig.model_validate(sections)
    td3 = make_algorithm(cfg, StillEnv(SPEC))
    ones = torch.ones(4, A)
    expected = torch.tensor([0.4, 0.05 + 0.7 / 3, 0.05 + 0.35 / 3, 0.05])
    torch.testing.assert_close(0.4 * td3.scale_noise(ones)[:, 0], expected)
    assert torch.equal(make_td3().scale_noise(ones), ones)
    spreads = []
    for rank in range(2):
        td3.distributed = Distributed(rank, world_size=2)
        spreads.append(td3._make_spread())
    torch.testing.assert_close(torch.cat(spreads), torch.linspace(1.0, 0.125, 8).unsqueeze(-1))
