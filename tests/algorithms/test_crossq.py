"""CrossQ against its algorithm 1, written out with torch's own layers in float64."""

import pytest
import torch
from torch import nn

from tests.off_policy import A, B, D, assert_close, make_learner, make_minibatch, squash, unit_action

GAMMA, TEMPERATURE, SCALE = 0.9, 0.2, 2.0
SETTINGS = {
    "name": "crossq",
    "gamma": GAMMA,
    "initial_temperature": TEMPERATURE,
    "target_entropy": -0.5,
    "reward_scale": SCALE,
}
NETWORK = {"name": "batch_norm", "hidden_sizes": [8], "critic_sizes": [6, 5]}


@pytest.fixture(autouse=True)
def _in_float64():
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(dtype)


@pytest.fixture
def crossq():
    """One whose running moments have moved."""
    crossq = make_learner(SETTINGS, NETWORK)
    with torch.no_grad():
        for module in (crossq.policy, crossq.critics):
            for name, buffer in module.named_buffers():
                if name.endswith((".mean", ".variance")):
                    buffer.add_(0.3 * torch.rand_like(buffer))
    return crossq


def plain(state, sizes):
    """A network of torch's layers from a state dict: normalization, linear, ReLU, ..., linear."""
    layers = []
    for i, size in enumerate(sizes):
        norm = nn.BatchNorm1d(size, eps=1e-5)
        for ours, theirs in (("scale", "weight"), ("shift", "bias"), ("mean", "running_mean")):
            getattr(norm, theirs).data.copy_(state[f"norms.{i}.{ours}"])
        norm.running_var.copy_(state[f"norms.{i}.variance"])
        is_last = i + 1 == len(sizes)
        name = "head" if is_last else f"linears.{i}"
        linear = nn.Linear(size, len(state[f"{name}.bias"]))
        linear.weight.data.copy_(state[f"{name}.weight"])
        linear.bias.data.copy_(state[f"{name}.bias"])
        layers += [norm, linear, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def actor_of(crossq):
    state = {name.replace("encoder.trunk.", ""): v for name, v in crossq.policy.state_dict().items()}
    return plain(state, [D, 8])


def critics_of(crossq):
    state = {name.replace("trunk.", ""): value for name, value in crossq.critics.state_dict().items()}
    return [plain({k: v[i] for k, v in state.items()}, [D + A, 6, 5]) for i in range(2)]


def weights_of(networks, ours):
    """The weights of plain networks, stacked, in the order of `ours`: all norms, all linears, the head."""
    ordered = []
    for network in networks:
        layers = [layer for layer in network if not isinstance(layer, nn.ReLU)]
        ordered.append([weight for layer in layers[::2] + layers[1::2] for weight in layer.parameters()])
    assert [one.shape[-1] for one in ordered[0]] == [one.shape[-1] for one in ours]
    return ordered


def test_the_critics_learn_from_one_batch_of_both_steps(crossq):
    """Algorithm 1: the next values come from the same pass, without a gradient; no targets anywhere."""
    steps, actor, critics = make_minibatch(), actor_of(crossq).eval(), critics_of(crossq)
    next_action, log_prob = squash(actor(steps["next.policy"]), steps["noise"][:, 1], low=-5.0)
    now = torch.cat((steps["obs.policy"], unit_action(steps)), -1)
    both = torch.cat((now, torch.cat((steps["next.policy"], next_action.detach()), -1)))
    values = [critic.train()(both).squeeze(-1) for critic in critics]
    following = torch.minimum(*(value[B:] for value in values)).detach() - TEMPERATURE * log_prob.detach()
    target = SCALE * steps["reward"] + GAMMA ** steps["num_steps"] * ~steps["terminated"] * following
    loss = sum(((value[:B] - target) ** 2).mean() for value in values)
    gradients, report = crossq._critic_gradients(steps)
    torch.testing.assert_close(report, loss.detach().view(1))
    ordered = weights_of(critics, crossq.critic_weights)
    expected = [torch.autograd.grad(loss, weights, retain_graph=True) for weights in ordered]
    num_weights = len(crossq.critic_weights)
    stacked = [torch.stack(pair) for pair in zip(*expected, strict=True)]
    assert_close(gradients[:num_weights], stacked)
    first = critics[0][0]
    moved = 0.99 * crossq.critics.trunk.norms[0].mean[0] + 0.01 * gradients[num_weights][0]
    crossq._apply_to_critics(gradients, torch.tensor(True))
    torch.testing.assert_close(crossq.critics.trunk.norms[0].mean[0], moved)
    torch.testing.assert_close(both.mean(0), gradients[num_weights][0])
    assert first.num_batches_tracked == 1
    assert not any("target" in name for name in crossq.parts())


def test_the_policy_learns_from_critics_with_their_running_moments(crossq):
    steps, actor = make_minibatch(), actor_of(crossq).train()
    outputs = actor(torch.cat((steps["obs.policy"], steps["next.policy"])))[:B]
    action, log_prob = squash(outputs, steps["noise"][:, 0], low=-5.0)
    inputs = torch.cat((steps["obs.policy"], action), -1)
    values = [critic.eval()(inputs).squeeze(-1) for critic in critics_of(crossq)]
    loss = (TEMPERATURE * log_prob - torch.minimum(*values)).mean()
    gradients, report = crossq._actor_gradients(steps)
    torch.testing.assert_close(report[0], loss.detach())
    (ordered,) = weights_of([actor], crossq.actor_weights)
    assert_close(gradients[: len(ordered)], torch.autograd.grad(loss, ordered))
    of_temperature = TEMPERATURE * (-log_prob.mean() - A * -0.5)
    torch.testing.assert_close(gradients[len(ordered)], of_temperature.detach())


def test_the_policy_moves_at_every_third_step_and_adam_forgets_fast(crossq):
    moved = []
    for _ in range(6):
        before = [weight.clone() for weight in crossq.actor_weights]
        crossq.step(make_minibatch())
        moved.append(any(not torch.equal(*pair) for pair in zip(before, crossq.actor_weights, strict=True)))
    assert moved == [True, False, False] * 2
    assert crossq.actor_optimizer.betas == crossq.critic_optimizer.betas == (0.5, 0.999)


def test_a_network_without_batch_normalization_is_refused():
    with pytest.raises(ValueError, match="learns with batch normalization, which this network lacks"):
        make_learner(SETTINGS, {"name": "mlp"})


def test_weights_of_a_fixed_norm_keep_it():
    network = {"name": "flash", "actor_width": 8, "critic_width": 6, "num_blocks": 1, "expansion": 2}
    crossq = make_learner(SETTINGS, network)
    for _ in range(3):
        crossq.step(make_minibatch())
    for module in (crossq.policy, crossq.critics):
        for name, weight in module.named_parameters():
            if name.endswith("weight"):
                torch.testing.assert_close(weight.norm(dim=-1), torch.ones(weight.shape[:-1]), msg=name)


def test_the_first_actions_are_spread():
    """The standard deviation before tanh begins near that of SAC, e^-1.5."""
    crossq = make_learner(SETTINGS, NETWORK)
    _, std = crossq.policy.before_tanh(crossq.trunk(torch.randn(B, D)))
    assert 0.05 < std.mean() < 0.6
