"""SAC against the equations of its paper (arXiv 1812.05905), written out in float64."""

import copy
import math
from pathlib import Path

import pytest
import torch

from envs_gpu.errors import SettingError
from envs_gpu.make import make_env
from envs_gpu.vec_env import EnvSpec
from pi_incubator.config import ConfigError, ExperimentConfig, load_config
from tests import off_policy
from tests.envs import StillEnv
from tests.learning import make_algorithm

CONFIG = str(Path(__file__).parents[2] / "configs" / "ppo" / "cartpole_balance.yaml")
CPU = torch.device("cpu")
B, D, A = 32, 3, 2
LOW, HIGH = (-1.0, -3.0), (1.0, 0.5)
SETTINGS = {
    "name": "sac",
    "gamma": 0.9,
    "tau": 0.25,
    "initial_temperature": 0.7,
    "target_entropy": -1.5,
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


def make_sac():
    """Twin critics that disagree with their targets, and a normalizer that has seen data."""
    torch.manual_seed(0)
    spec = EnvSpec("toy", 4, {"policy": D}, A, LOW, HIGH, ("a", "b"), 50.0, 100, CPU)
    cfg = ExperimentConfig.model_validate(
        {"env": {"num_envs": 4}, "network": {"hidden_sizes": [8]}, "algorithm": SETTINGS}
    )
    sac = make_algorithm(cfg, StillEnv(spec))
    with torch.no_grad():
        sac.policy.head[-1].weight.mul_(30.0)  # not more, or 1 - tanh^2 below loses its digits
        for target in sac.target_weights:
            target.add_(0.3 * torch.randn_like(target))
    sac.policy.normalizer.observe({"policy": 2.0 + 3.0 * torch.randn(100, D)})
    sac.policy.normalizer.commit()
    return sac


def make_minibatch(seed=0):
    """With broken steps."""
    steps = off_policy.make_minibatch(seed)
    steps["valid"] = torch.arange(B) % 8 != 3
    return steps


class Paper:
    """Equations 5, 9 and 18 with the weights of `sac`, in plain torch.

    Actions are those before they are scaled to the env's limits, in (-1, 1). Expectations are means over the
    steps that are valid.
    """

    def __init__(self, sac):
        self.mean, self.std = (getattr(sac.policy.normalizer["policy"], name) for name in ("mean", "std"))
        self.actor = leaves(sac.policy.head.state_dict())
        self.critics = [leaves(one) for one in critics_of(sac.loss.qvalue_network_params)]
        self.targets = [leaves(one) for one in critics_of(sac.loss.target_qvalue_network_params)]
        self.temperature = sac.loss.log_alpha.detach().exp().clone().requires_grad_()

    def sample(self, observation, noise):
        """Action `[B, A]` and the logarithm of its density `[B]`, by the rule of appendix C."""
        loc, raw = mlp(self.actor, (observation - self.mean) / self.std).chunk(2, -1)
        scale = (-5.0 + 3.5 * (raw.tanh() + 1.0)).exp()
        before = loc + scale * noise
        action = before.tanh()
        density = torch.exp(-0.5 * noise**2) / (scale * math.sqrt(2 * math.pi)) / (1 - action**2)
        return action, density.log().sum(-1)

    def value(self, weights, observation, action):
        """Q `[B]`."""
        return mlp(weights, torch.cat(((observation - self.mean) / self.std, action), -1)).squeeze(-1)

    def critic_loss(self, steps):
        """J_Q of equation 5, summed over both critics."""
        return sum(error[steps["valid"]].mean() / 2 for error in self.squared_errors(steps))

    def squared_errors(self, steps):
        """Of each critic, `[B]`."""
        low, high = torch.tensor(LOW), torch.tensor(HIGH)
        action = 2 * (steps["action"] - low) / (high - low) - 1
        with torch.no_grad():
            following, log_prob = self.sample(steps["next.policy"], steps["noise"][:, 1])
            least = torch.minimum(*(self.value(w, steps["next.policy"], following) for w in self.targets))
            soft = least - self.temperature * log_prob  # V, equation 3
            discount = 0.9 ** steps["num_steps"]
            target = 2.0 * steps["reward"] + discount * torch.where(steps["terminated"], 0.0, soft)
        return [(self.value(w, steps["obs.policy"], action) - target) ** 2 for w in self.critics]

    def actor_loss(self, steps):
        """J_pi of equation 9, with the least of both critics."""
        action, log_prob = self.sample(steps["obs.policy"], steps["noise"][:, 0])
        least = torch.minimum(*(self.value(w, steps["obs.policy"], action) for w in self.critics))
        return (self.temperature.detach() * log_prob - least)[steps["valid"]].mean()

    def temperature_loss(self, steps):
        """J(alpha) of equation 18."""
        _, log_prob = self.sample(steps["obs.policy"], steps["noise"][:, 0])
        target_entropy = -1.5 * A
        return (-self.temperature * (log_prob.detach() + target_entropy))[steps["valid"]].mean()


def leaves(weights):
    return {name: value.detach().clone().requires_grad_() for name, value in weights.items()}


def critics_of(stacked):
    """The weights of each critic's head by the names of a `Sequential`."""
    flat = {name: value for name, value in stacked.flatten_keys(".").items() if ".head." in f".{name}"}
    named = {name.partition("head.")[2]: value for name, value in flat.items()}
    return [{name: value[index] for name, value in named.items()} for index in range(2)]


def mlp(weights, x):
    hidden = torch.tanh(x @ weights["0.weight"].T + weights["0.bias"])
    return hidden @ weights["2.weight"].T + weights["2.bias"]


def assert_gradients(ours, theirs):
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert other.abs().max() > 0
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_the_critics_learn_by_equation_5():
    """TorchRL leaves out the half; Adam does not see a factor."""
    sac, steps = make_sac(), make_minibatch()
    paper = Paper(sac)
    gradients, report = sac._critic_gradients(steps)
    loss = 2 * paper.critic_loss(steps)
    torch.testing.assert_close(report, loss.detach().view(1), rtol=1e-10, atol=0)
    names = list(critics_of(sac.loss.qvalue_network_params)[0])
    flat = torch.autograd.grad(loss, [critic[name] for critic in paper.critics for name in names])
    expected = [torch.stack((one, other)) for one, other in zip(flat[:4], flat[4:], strict=True)]
    assert_gradients(gradients, expected)


def test_weights_count_in_the_critics_loss_and_their_errors_are_told():
    """The loss is the mean of weighted errors; told is the larger error. The policy sees no weights."""
    sac, steps = make_sac(), make_minibatch()
    of_actor = sac._actor_gradients(steps)[0]
    steps["weight"] = torch.rand(B, generator=torch.Generator().manual_seed(3))
    paper = Paper(sac)
    errors = paper.squared_errors(steps)
    expected = sum((steps["weight"] * error)[steps["valid"]].mean() for error in errors)
    _, report = sac._critic_gradients(steps)
    torch.testing.assert_close(report, expected.detach().view(1), rtol=1e-10, atol=0)
    torch.testing.assert_close(sac.surprise, torch.maximum(*paper.squared_errors(steps)).sqrt().detach())
    for one, other in zip(of_actor, sac._actor_gradients(steps)[0], strict=True):
        assert torch.equal(one, other)


def test_the_policy_learns_by_equation_9_and_the_temperature_by_18():
    """The gradient by the temperature's logarithm is that of equation 18 by the temperature itself."""
    sac, steps = make_sac(), make_minibatch()
    paper = Paper(sac)
    (*of_actor, of_temperature), report = sac._actor_gradients(steps)
    loss = paper.actor_loss(steps)
    expected = torch.autograd.grad(loss, list(paper.actor.values()))
    assert [name for name, _ in sac.policy.named_parameters()] == [f"head.{name}" for name in paper.actor]
    assert_gradients(of_actor, expected)
    (by_temperature,) = torch.autograd.grad(paper.temperature_loss(steps), paper.temperature)
    torch.testing.assert_close(of_temperature, by_temperature, rtol=1e-10, atol=0)
    torch.testing.assert_close(report[0], loss.detach(), rtol=1e-10, atol=0)
    torch.testing.assert_close(report[2], torch.tensor(0.7))
    torch.testing.assert_close(report[3], -paper.sample(steps["obs.policy"], steps["noise"][:, 0])[1].mean())
    # The logarithm of the temperature is negative here, and its loss is that times the gradient.
    torch.testing.assert_close(report[1], math.log(0.7) * by_temperature, rtol=1e-10, atol=0)


def test_one_step_moves_critics_then_policy_then_targets():
    """The policy learns from critics that have just learned, and the targets follow those by tau."""
    sac, reference, steps = make_sac(), make_sac(), make_minibatch()
    sac.step(steps)
    sound = torch.tensor(True)
    reference._apply_to_critics(reference._critic_gradients(steps)[0], sound)
    targets = copy.deepcopy(reference.target_weights)
    for target, weight in zip(targets, reference.critic_weights, strict=True):
        target.data.mul_(0.75).add_(0.25 * weight.detach())
    reference._apply_to_actor(list(reference._actor_gradients(steps)[0]), sound)
    for ours, theirs in zip(sac.target_weights, targets, strict=True):
        torch.testing.assert_close(ours, theirs)
    pairs = [(sac.critic_weights, reference.critic_weights), (sac.actor_weights, reference.actor_weights)]
    for ours, theirs in pairs:
        assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))
    assert sac.loss.log_alpha != math.log(0.7)


def test_broken_steps_are_not_learned_from():
    """Whatever finite numbers stand in them; the env promises that they are."""
    sac, steps = make_sac(), make_minibatch()
    spoiled = steps.clone()
    for name in ("obs.policy", "next.policy", "action", "reward", "noise"):
        spoiled[name][~steps["valid"]] = 100.0
    spoiled["terminated"] ^= ~steps["valid"]
    for differentiate in (sac._critic_gradients, sac._actor_gradients):
        clean, changed = differentiate(steps)[0], differentiate(spoiled)[0]
        for one, other in zip(clean, changed, strict=True):
            assert one.isfinite().all()
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)


def test_nothing_is_learned_where_all_steps_are_broken():
    sac, steps = make_sac(), make_minibatch()
    steps["valid"][:] = False
    for differentiate in (sac._critic_gradients, sac._actor_gradients):
        assert all(gradient.isfinite().all() for gradient in differentiate(steps)[0])


def test_truncated_steps_bootstrap_and_terminated_ones_do_not():
    sac, steps = make_sac(), make_minibatch()

    def depends_on_what_follows(chosen):
        changed, alone = steps.clone(), steps["valid"] & chosen
        changed["next.policy"][alone] += 1.0
        before, after = sac._critic_gradients(steps)[0], sac._critic_gradients(changed)[0]
        assert alone.any()
        return not all(torch.equal(a, b) for a, b in zip(before, after, strict=True))

    assert depends_on_what_follows(steps["truncated"])
    assert depends_on_what_follows(~steps["truncated"] & ~steps["terminated"])
    assert not depends_on_what_follows(steps["terminated"])


def test_a_step_that_is_not_finite_changes_no_bit_of_what_is_learned():
    sac, steps = make_sac(), make_minibatch()
    steps["reward"][4] = math.inf
    steps["obs.policy"][5] = math.nan
    learned = [*sac.actor_weights, *sac.critic_weights, *sac.target_weights, sac.loss.log_alpha]
    before = [weight.detach().clone() for weight in learned]
    sac.step(steps)
    assert all(torch.equal(*pair) for pair in zip(before, learned, strict=True))
    assert sac.skipped.pop() == 2


def test_critics_begin_with_orthonormal_last_layers():
    for critic in critics_of(make_sac().loss.qvalue_network_params):
        torch.testing.assert_close(critic["2.weight"].norm(), torch.tensor(1.0))


@pytest.fixture
def on_cartpoles():
    """Function that makes SAC in 8 real worlds, 4 steps of each an iteration."""
    torch.set_default_dtype(torch.float32)
    env = make_env("cartpole_balance", num_envs=8, device=CPU)

    def make(**settings):
        sizes = {"name": "sac", "horizon": 4, "batch_size": 4, "buffer_size": 512} | settings
        sections = {"env": {"name": "cartpole_balance", "num_envs": 8}, "network": {"hidden_sizes": [8]}}
        return make_algorithm(ExperimentConfig.model_validate(sections | {"algorithm": sizes}), env)

    yield make
    env.close()


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"learning_starts": 64, "updates_per_step": 0.25}, [0, 0, 8, 8, 8]),
        ({"learning_starts": 40, "updates_per_step": 0.25}, [0, 6, 8, 8, 8]),
        ({"learning_starts": 0, "updates_per_step": 0.05}, [1, 2, 1, 2, 2]),  # the rest is not lost
    ],
)
def test_updates_are_as_many_as_steps_after_the_first_are_worth(on_cartpoles, settings, expected):
    sac, counts = on_cartpoles(**settings), []
    step = sac.step
    for iteration in range(5):
        counts.append(0)

        def counting(minibatch, number=iteration):
            counts[number] += 1
            assert minibatch.batch_size == (4,)
            return step(minibatch)

        sac.step = counting
        sac.collect()
        metrics = sac.update()
        assert bool(metrics) == bool(counts[iteration])
    assert counts == expected
    assert sac.env_steps == 160
    assert len(sac.replay) == 160


def test_a_buffer_that_was_not_saved_is_filled_before_anything_is_learned(on_cartpoles):
    """The run goes on with the policy as it is, for as many steps as before its first update."""
    settings = {"learning_starts": 64, "updates_per_step": 0.25, "save_buffer": "never"}
    sac, resumed = on_cartpoles(**settings), on_cartpoles(**settings)
    assert sac.parts()["replay"].saved == "never"
    for _ in range(4):
        sac.collect()
        sac.update()
    for name, part in sac.parts().items():
        if part.saved != "never":
            resumed.parts()[name].value.load_state_dict(part.value.state_dict())
    assert resumed.env_steps == 128
    assert len(resumed.replay) == 0
    learned = []
    for _ in range(3):
        resumed.collect()
        learned.append(bool(resumed.update()))
    assert learned == [False, True, True]


def test_the_first_actions_are_uniform_and_the_next_the_policys(on_cartpoles):
    sac = on_cartpoles(learning_starts=320)
    with torch.no_grad():
        sac.policy.head[-1].bias[0] = 20.0  # the policy goes to the upper limit
    for _ in range(12):
        sac.collect()
    actions = sac.replay.state_dict()["action"].squeeze(-1)  # [48, 8]
    first, after = actions[:40].flatten(), actions[40:].flatten()
    assert (first.abs() <= 1).all()
    assert first.mean().abs() < 0.15  # of 320 numbers with a standard deviation of 0.58
    assert first.std() == pytest.approx(3**-0.5, rel=0.1)
    assert (after > 0.99).all()


def test_actions_without_limits_are_refused():
    spec = EnvSpec("endless", 4, {"policy": D}, 1, (-math.inf,), (1.0,), ("a",), 50.0, 100, CPU)
    cfg = ExperimentConfig.model_validate({"env": {"num_envs": 4}, "algorithm": SETTINGS})
    message = r"^env.name = 'endless': actions without limits cannot be squashed.*; choose another task"
    with pytest.raises(SettingError, match=message) as caught:
        make_algorithm(cfg, StillEnv(spec))
    assert len(str(caught.value).splitlines()) == 1


WINDOWS = ["network.name=gru", "algorithm.replay=sequences"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            ["network.name=gru"],
            "network.name = 'gru': it has a state, .*; set algorithm.replay to sequences",
        ),
        (
            ["algorithm.replay=sequences"],
            "network.name = 'mlp': it has no state, .* or name a network with",
        ),
        (["network.name=cnn", "env.pixels={}"], "network.name = 'cnn': .* networks with pixels; name mlp"),
        (
            [*WINDOWS, "algorithm.sequence_length=48"],
            "algorithm.batch_size = 256: must be a multiple of algorithm.sequence_length = 48 .*; change one",
        ),
        (
            [*WINDOWS, "algorithm.n_step=2", "env.num_envs=8", "algorithm.buffer_size=384"],
            r"algorithm.sequence_length = 32: a window of .* = 49 steps does not fit .* with 48 steps of",
        ),
        (
            ["algorithm.replay=her", "env.observation_history=2"],
            "env.observation_history = 2: .* her replaces the goal in the newest observation alone; remove",
        ),
    ],
)
def test_buffers_and_networks_that_do_not_fit_are_refused_in_one_line(settings, message):
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(CONFIG, ["algorithm.name=sac", *settings])
    assert len(str(caught.value).splitlines()) == 1


def test_hindsight_on_a_task_without_goals_is_refused_in_one_line(on_cartpoles):
    message = "^algorithm.replay = 'her': cartpole_balance has no goals; set it to uniform, or choose a task"
    with pytest.raises(SettingError, match=message) as caught:
        on_cartpoles(replay="her")
    assert len(str(caught.value).splitlines()) == 1


def test_priorities_follow_what_was_learned(on_cartpoles):
    """Steps that were learned from leave the priority that all steps begin with."""
    sac = on_cartpoles(replay="prioritized", learning_starts=32, updates_per_step=0.25)
    for _ in range(3):
        sac.collect()
        sac.update()
    priorities = sac.replay.state_dict()["priority.0"]
    held = priorities[: len(sac.replay)]
    assert (held > 0).all()
    assert (held == 1.0).any()
    assert (held != 1.0).any()


def test_sums_of_more_steps_than_the_buffer_holds_are_refused():
    message = r"algorithm.n_step = 9: the replay buffer holds 8 steps of each world; set it to 8 or less"
    with pytest.raises(ConfigError, match=message):
        load_config(
            CONFIG,
            ["algorithm.name=sac", "algorithm.n_step=9", "env.num_envs=64", "algorithm.buffer_size=512"],
        )


def test_a_run_that_starts_from_this_one_takes_policy_and_critics(on_cartpoles):
    learned = {name for name, part in on_cartpoles().parts().items() if part.is_learned}
    assert learned == {"policy", "critics"}


def test_hindsight_trains_on_a_task_with_goals():
    """Half of what is learned from has the task's goals and half has others, and the update is sound."""
    torch.set_default_dtype(torch.float32)
    env = make_env("yam_reach", num_envs=4, device=CPU)
    sections = {"env": {"name": "yam_reach", "num_envs": 4}, "network": {"hidden_sizes": [8]}}
    sizes = {
        "horizon": 16,
        "batch_size": 40,
        "buffer_size": 512,
        "learning_starts": 0,
        "updates_per_step": 0.1,
    }
    settings = {"name": "sac", "replay": "her", "n_step": 3, "relabelled_share": 0.5}
    sac = make_algorithm(ExperimentConfig.model_validate(sections | {"algorithm": settings | sizes}), env)
    sac.collect()
    task_goals = sac.replay.state_dict()["obs.critic"][..., 12:15].flatten(0, 1)
    goals = sac.replay.sample(40)["obs.critic"][:, 12:15]
    is_of_task = (goals[:, None] == task_goals).all(-1).any(-1)
    assert is_of_task.tolist() == [False] * 20 + [True] * 20
    assert all(value.isfinite() for value in sac.update().values())
    env.close()
