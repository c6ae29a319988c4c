"""FlashSAC against its equations, written out with torch's own layers in float64."""

import math

import pytest
import torch
from torch.nn import functional

from envs_gpu.make import make_env
from pi_incubator.config import ExperimentConfig
from tests.learning import make_algorithm
from tests.off_policy import CPU, A, B, D, assert_close, make_learner, make_minibatch, squash, unit_action

Z = 11
GAMMA, TAU, TEMPERATURE = 0.9, 0.25, 0.2
SETTINGS = {
    "name": "flash_sac",
    "gamma": GAMMA,
    "tau": TAU,
    "initial_temperature": TEMPERATURE,
    "num_bins": Z,
}
NETWORK = {"name": "flash", "actor_width": 8, "critic_width": 6, "num_blocks": 1, "expansion": 2}
SOUND = torch.tensor(True)


@pytest.fixture(autouse=True)
def _in_float64():
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(dtype)


def make_flash_sac(shards=0, autocast="none"):
    """Critics that disagree with their targets, and running moments that have moved."""
    sac = make_learner(SETTINGS, NETWORK, shards=shards, autocast=autocast)
    with torch.no_grad():
        for weight in [*sac.targets.parameters(), *sac.actor_weights, *sac.critic_weights]:
            weight.add_(0.2 * torch.randn_like(weight))
        for module in (sac.policy, sac.critics):
            for name, buffer in module.named_buffers():
                if name.endswith((".mean", ".variance")):
                    buffer.add_(0.3 * torch.rand_like(buffer))
        sac.reward_scale.scale.fill_(0.5)
    return sac


class Plain:
    """One network's trunk and head in torch's own functions, from a state dict; batch moments on demand."""

    def __init__(self, state):
        self.state = {name: value.detach().clone() for name, value in state.items()}

    def leaves(self, names):
        for name in names:
            self.state[name].requires_grad_()
        return [self.state[name] for name in names]

    def normalized(self, name, x, on_batch):
        get = lambda part: self.state[f"{name}.{part}"]  # noqa: E731
        mean, variance = (None, None) if on_batch else (get("mean"), get("variance"))
        return functional.batch_norm(
            x, mean, variance, get("scale"), get("shift"), training=on_batch, eps=1e-5
        )

    def __call__(self, x, on_batch, prefix="trunk", head="head"):
        x = self.normalized(f"{prefix}.normalize", x, on_batch) @ self.state[f"{prefix}.embed.weight"].T
        block = f"{prefix}.blocks.0"
        inside = x @ self.state[f"{block}.widen.weight"].T
        inside = functional.relu(self.normalized(f"{block}.widened", inside, on_batch))
        inside = inside @ self.state[f"{block}.narrow.weight"].T
        x = x + functional.relu(self.normalized(f"{block}.narrowed", inside, on_batch))
        x = functional.rms_norm(x, x.shape[-1:], self.state[f"{prefix}.finish.scale"], eps=1e-6)
        return x @ self.state[f"{head}.weight"].T + self.state[f"{head}.bias"]


def critics_of(module):
    """Two plain critics from the stacked one."""
    return [Plain({name: value[index] for name, value in module.state_dict().items()}) for index in range(2)]


def critic_loss(sac, steps, critics):
    """Cross-entropy between the projected target and each critic, summed over the critics and halved."""
    actor, targets = Plain(sac.policy.state_dict()), critics_of(sac.targets)
    outputs = actor(steps["next.policy"], on_batch=False, prefix="encoder.trunk")
    following, log_prob = squash(outputs, steps["noise"][:, 1], low=-10.0)
    both = torch.cat(
        (
            torch.cat((steps["obs.policy"], unit_action(steps)), -1),
            torch.cat((steps["next.policy"], following), -1),
        )
    )
    bins = torch.linspace(-5.0, 5.0, Z)
    chances = [target(both, on_batch=True)[B:].softmax(-1) for target in targets]
    values = [(chance * bins).sum(-1) for chance in chances]
    chance = torch.where((values[0] <= values[1]).unsqueeze(-1), *chances)
    soft = bins - (TEMPERATURE * log_prob).unsqueeze(-1)
    soft = torch.where(steps["terminated"].unsqueeze(-1), 0.0, soft)
    value = (steps["reward"] / 0.5).unsqueeze(-1) + (GAMMA ** steps["num_steps"]).unsqueeze(-1) * soft
    wanted = torch.zeros(B, Z)
    for row in range(B):
        for share, number in zip(chance[row], value[row], strict=True):
            place = (float(number.clamp(-5.0, 5.0)) + 5.0) / (10.0 / (Z - 1))
            below = min(int(place), Z - 2)
            wanted[row, below] += share * (1 - (place - below))
            wanted[row, below + 1] += share * (place - below)
    logs = [critic(both, on_batch=True)[:B].log_softmax(-1) for critic in critics]
    return -sum((wanted.detach() * log).sum(-1).mean() for log in logs) / 2


def names_of(module):
    return [name for name, _ in module.named_parameters()]


def test_the_critics_learn_the_projected_value_of_the_lesser_target():
    sac, steps = make_flash_sac(), make_minibatch()
    critics, names = critics_of(sac.critics), names_of(sac.critics)
    leaves = [critic.leaves(names) for critic in critics]
    loss = critic_loss(sac, steps, critics)
    gradients, report = sac._critic_gradients(steps)
    torch.testing.assert_close(report, loss.detach().view(1), rtol=1e-10, atol=0)
    expected = torch.autograd.grad(loss, leaves[0] + leaves[1])
    stacked = [torch.stack(pair) for pair in zip(expected[: len(names)], expected[len(names) :], strict=True)]
    assert all(gradient.abs().max() > 0 for gradient in stacked)
    assert_close(gradients[: len(names)], stacked)


def loss_with(sac, steps, weight):
    steps["weight"] = weight
    return sac._critic_gradients(steps)[1].item()


def test_weights_count_in_the_critics_loss_and_the_divergence_is_told():
    """The loss is the mean of weighted cross-entropies; the divergence is what exceeds the entropy."""
    sac, steps = make_flash_sac(), make_minibatch()
    cross_entropy = torch.tensor([B * loss_with(sac, steps, one) for one in torch.eye(B)])
    weight = torch.rand(B, generator=torch.Generator().manual_seed(3))
    assert loss_with(sac, steps, weight) == pytest.approx(float((weight * cross_entropy).mean()))
    assert (sac.surprise > 0).all()
    entropy = cross_entropy - sac.surprise
    assert (entropy > 0).all()
    assert (entropy < math.log(Z)).all()


def test_the_policy_learns_from_the_lesser_critic_and_the_temperature_from_the_entropy():
    sac, steps = make_flash_sac(), make_minibatch()
    actor, names = Plain(sac.policy.state_dict()), names_of(sac.policy)
    leaves = actor.leaves(names)
    both = torch.cat((steps["obs.policy"], steps["next.policy"]))
    outputs = actor(both, on_batch=True, prefix="encoder.trunk")[:B]
    action, log_prob = squash(outputs, steps["noise"][:, 0], low=-10.0)
    inputs, bins = torch.cat((steps["obs.policy"], action), -1), torch.linspace(-5.0, 5.0, Z)
    values = [(one(inputs, on_batch=False).softmax(-1) * bins).sum(-1) for one in critics_of(sac.critics)]
    loss = (TEMPERATURE * log_prob - torch.minimum(*values)).mean()
    gradients, report = sac._actor_gradients(steps)
    torch.testing.assert_close(report[0], loss.detach(), rtol=1e-10, atol=0)
    assert_close(gradients[: len(names)], torch.autograd.grad(loss, leaves))
    wanted = A * 0.5 * math.log(2 * math.pi * math.e * 0.15**2)
    of_temperature = TEMPERATURE * (-log_prob.mean() - wanted)
    torch.testing.assert_close(gradients[len(names)], of_temperature.detach(), rtol=1e-9, atol=0)


def test_targets_follow_and_weights_keep_their_norm():
    sac, steps = make_flash_sac(), make_minibatch()
    before = [target.clone() for target in sac.targets.parameters()]
    sac.step(steps)
    for old, target, weight in zip(before, sac.targets.parameters(), sac.critic_weights, strict=True):
        torch.testing.assert_close(target, (1 - TAU) * old + TAU * weight.detach())
    for module in (sac.policy, sac.critics):
        weights = {name: value for name, value in module.named_parameters() if name.endswith("weight")}
        for name, weight in weights.items():
            torch.testing.assert_close(weight.norm(dim=-1), torch.ones(weight.shape[:-1]), msg=name)


def test_the_policy_moves_at_every_second_step():
    sac, steps = make_flash_sac(), make_minibatch()
    moved = []
    for _ in range(4):
        before = [weight.clone() for weight in sac.actor_weights]
        sac.step(steps)
        moved.append(any(not torch.equal(*pair) for pair in zip(before, sac.actor_weights, strict=True)))
    assert moved == [True, False, True, False]


def test_broken_steps_are_not_learned_from():
    sac, steps = make_flash_sac(), make_minibatch()
    steps["valid"] = torch.arange(B) % 8 != 3
    spoiled = steps.clone()
    for name in ("obs.policy", "next.policy", "reward", "noise"):
        spoiled[name][~steps["valid"]] = 100.0
    clean, changed = sac._critic_gradients(steps)[0], sac._critic_gradients(spoiled)[0]
    assert_close(clean, changed)
    clean, changed = sac._actor_gradients(steps)[0], sac._actor_gradients(spoiled)[0]
    assert_close(clean[: len(sac.actor_weights)], changed[: len(sac.actor_weights)])


def test_a_step_that_is_not_finite_changes_no_bit_of_what_is_learned():
    sac, steps = make_flash_sac(), make_minibatch()
    steps["reward"][5] = math.inf
    steps["noise"][7] = math.nan
    learned = (sac.policy, sac.critics, sac.targets, sac.actor_optimizer, sac.critic_optimizer)
    before = [{name: value.clone() for name, value in one.state_dict().items()} for one in learned]
    sac.step(steps)
    assert sac.skipped.pop() == 2
    for one, old in zip(learned, before, strict=True):
        for name, value in one.state_dict().items():
            assert torch.equal(value, old[name]), name


def test_shards_are_learned_from_like_ranks():
    """The gradient of two shards is the mean of the gradients of each."""
    both, single, steps = make_flash_sac(shards=2), make_flash_sac(), make_minibatch()
    single.surprise = torch.zeros(B // 2)
    halves = [steps[: B // 2], steps[B // 2 :]]
    for differentiate in ("_critic_gradients", "_actor_gradients"):
        ours = getattr(both, differentiate)(steps)[0]
        theirs = [getattr(single, differentiate)(half)[0] for half in halves]
        assert_close(ours, [(one + other) / 2 for one, other in zip(*theirs, strict=True)])


def test_under_autocast_products_are_rounded_and_probabilities_are_not():
    """Gradients differ by the rounding of bfloat16, 2^-9 of each factor; outputs stay float32."""
    torch.set_default_dtype(torch.float32)
    full, rounded, steps = make_flash_sac(), make_flash_sac(autocast="bfloat16"), make_minibatch()
    for which in ("critic", "actor"):
        ours, report = getattr(rounded, f"_{which}_gradients")(steps)
        theirs, expected = getattr(full, f"_{which}_gradients")(steps)
        torch.testing.assert_close(report, expected, rtol=0.02, atol=0.02)
        assert {gradient.dtype for gradient in [*ours, report]} == {torch.float32}
        num_weights = len(getattr(full, f"{which}_weights"))
        ours, theirs = (torch.cat([one.flatten() for one in all_[:num_weights]]) for all_ in (ours, theirs))
        assert not torch.equal(ours, theirs)
        assert torch.cosine_similarity(ours, theirs, dim=0) > 0.99
    with rounded.autocast():
        mean, _ = rounded.policy.before_tanh(rounded.trunk(torch.randn(1, B, D)))
    assert mean.dtype == torch.float32


def test_rewards_are_scaled_from_the_first_iteration_on():
    """By what their returns were: a pole that stands earns one a step."""
    torch.set_default_dtype(torch.float32)
    env = make_env("cartpole_balance", num_envs=4, device=CPU)
    settings = {"name": "flash_sac", "horizon": 8, "batch_size": 4, "buffer_size": 512}
    sections = {"env": {"name": "cartpole_balance", "num_envs": 4}, "network": NETWORK}
    sac = make_algorithm(ExperimentConfig.model_validate(sections | {"algorithm": settings}), env)
    sac.collect()
    rewards = sac.replay.state_dict()["reward"]  # [8, 4]
    returns = [sum(0.99 ** (t - k) * rewards[k] for k in range(t + 1)) for t in range(8)]
    std = torch.stack(returns).std(correction=0)
    expected = torch.maximum(std, torch.stack(returns).abs().max() / 5.0)
    torch.testing.assert_close(sac.reward_scale.scale, expected, rtol=1e-4, atol=0)
    env.close()
