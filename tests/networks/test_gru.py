"""The recurrent policy: its arithmetic is torch's, its gradient a naive loop's, its state travels along."""

import copy
from itertools import pairwise

import pytest
import torch
from pi_incubator.algorithms._captured import NUM_WARM_UP, CapturedStep
from pi_incubator.algorithms._compiled import compiled_step
from pi_incubator.algorithms._minibatches import Sequences
from pi_incubator.networks._gru_scan import gru_scan
from pi_incubator.networks._stateful import Memory
from pi_incubator.trainers.on_policy import collect, make_act
from pi_incubator.trainers.rollout import Rollout

from envs_gpu.make import make_env
from envs_gpu.vec_env import EnvSpec
from pi_incubator.algorithms import make_algorithm
from pi_incubator.config import ConfigError, ExperimentConfig
from pi_incubator.networks import make_network
from tests.envs import record_results

CPU = torch.device("cpu")
T, N, D, H = 12, 5, 4, 6
NUM_ENVS, HORIZON = 4, 24


def make_cfg(**algorithm):
    settings = {"horizon": HORIZON, "minibatch_size": 2 * HORIZON, "entropy_coef": 0.01} | algorithm
    network = {"name": "gru", "hidden_sizes": [16, 8]}
    env = {"name": "ant", "num_envs": NUM_ENVS}
    return ExperimentConfig.model_validate({"env": env, "network": network, "algorithm": settings})


@pytest.fixture
def setting():
    cfg = make_cfg()
    torch.manual_seed(0)
    env = make_env("ant", num_envs=NUM_ENVS, device=CPU, seed=0)
    policy = make_network(cfg.network, env.spec)
    with torch.no_grad():
        policy.actor[-1].weight.mul_(30.0)  # or the actions would hardly depend on the state
    rollout = Rollout(HORIZON, env.spec, policy.groups, policy.state_width)
    yield cfg, env, policy, rollout
    env.close()


def collect_with_ends(env, policy, rollout):
    """A rollout after another one, in which one world is cut off by the clock and another one falls.

    What it stores are raw observations: a normalizer that was never committed changes nothing.
    """
    act = make_act(policy, False)
    collect(env, policy, act, rollout)
    before = rollout.state.clone()
    env._episode_step[1] = env.spec.max_episode_steps - 10
    env.physics.state.qpos[2, 2] = 0.1  # m, below what Ant may sink to
    results = record_results(env)
    collect(env, policy, act, rollout)
    return before, results


def pieces(begins):
    """The stretches of one sequence `[T]` between resets."""
    starts = sorted({0, *begins.nonzero().flatten().tolist(), len(begins)})
    return list(pairwise(starts))


@pytest.mark.parametrize("share", [0.0, 0.2, 1.0], ids=["no resets", "some", "at every step"])
def test_the_scan_and_its_gradient_are_those_of_torchs_gru(share):
    torch.manual_seed(0)
    gru = torch.nn.GRU(D, H).double()
    observation, weights = torch.randn(T, N, D).double(), torch.randn(T, N, H).double()
    begins = torch.rand(T, N) < share
    state = torch.randn(N, H).double().requires_grad_()
    leaves = [state, *gru.parameters()]
    inputs = torch.nn.functional.linear(observation, gru.weight_ih_l0, gru.bias_ih_l0)
    hidden = gru_scan(inputs, state, begins, gru.weight_hh_l0, gru.bias_hh_l0)
    gradients = torch.autograd.grad((hidden * weights).sum(), leaves, materialize_grads=True)
    expected = []
    for world in range(N):
        rows = []
        for start, end in pieces(begins[:, world]):
            first = torch.zeros_like(state[:1]) if begins[start, world] else state[world][None]
            rows.append(gru(observation[start:end, world], first)[0])
        expected.append(torch.cat(rows))
    expected = torch.stack(expected, 1)
    torch.testing.assert_close(hidden, expected, rtol=0, atol=1e-12)
    reference = torch.autograd.grad((expected * weights).sum(), leaves, materialize_grads=True)
    for ours, theirs in zip(gradients, reference, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-11)


def test_the_scan_is_a_proper_operator():
    """What torch.compile takes for granted of it: shapes, strides, no hidden aliases, its gradient."""
    random = torch.Generator().manual_seed(0)
    shapes = ((T, N, 3 * H), (N, H), (3 * H, H), (3 * H,))
    leaves = [torch.randn(shape, generator=random).requires_grad_() for shape in shapes]
    begins = torch.rand(T, N, generator=random) < 0.2
    torch.library.opcheck(torch.ops.pi_incubator.gru_scan, (*leaves[:2], begins, *leaves[2:]))


def test_a_sequence_is_what_its_steps_are(setting):
    """`Memory.sequence` of any network, one step after the other, and the scan that a GRU has instead."""
    _, env, policy, _ = setting
    memory = policy.actor_memory
    observation = torch.randn(T, N, env.spec.obs_dims["policy"])
    state, begins = torch.randn(N, memory.state_width), torch.rand(T, N) < 0.2
    at_once = memory.sequence(observation, state, begins)
    torch.testing.assert_close(at_once, Memory.sequence(memory, observation, state, begins))


def test_state_is_carried_and_starts_anew_with_the_episode(setting):
    _, env, policy, rollout = setting
    before, results = collect_with_ends(env, policy, rollout)
    data, state = rollout.data, before
    ended = {"truncated": 0, "terminated": 0}
    with torch.no_grad():
        for t, result in enumerate(results):
            act = policy.act({"policy": data["policy"][t]}, rollout.noise[t], state)
            torch.testing.assert_close(data["action"][t], act.action)
            torch.testing.assert_close(data["state_value"][t, :, 0], act.value)
            final, state = policy.value(result.final_obs, act.state), act.state.clone()
            done = result.truncated | result.terminated
            state[done] = 0.0
            following = policy.value(result.obs, state)
            next_value = torch.where(done, final, following)
            told = ~result.terminated  # there is nothing to bootstrap where the task ended
            torch.testing.assert_close(data["next", "state_value"][t, told, 0], next_value[told])
            for name in ended:
                ended[name] += int(getattr(result, name).sum())
            if result.truncated.any():
                assert not torch.isclose(final, policy.value(result.final_obs, state))[result.truncated].any()
    torch.testing.assert_close(rollout.state, state)
    assert min(ended.values()) >= 1
    assert torch.equal(data["state"], before.expand(HORIZON, -1, -1))


def test_the_ratio_is_one_before_the_first_step(setting):
    """The loss sees the policy that acted, over the whole rollout and its resets."""
    cfg, env, policy, rollout = setting
    collect_with_ends(env, policy, rollout)
    assert rollout.data["next", "done"].any()
    learner = make_algorithm(cfg, policy)
    learner.advantage(rollout.data)
    keys = ["policy", "action", "action_log_prob", "advantage", "value_target", "state_value"]
    sequences = Sequences(rollout.data, keys, cfg.algorithm.minibatch_size)
    for minibatch in sequences.shuffled(torch.Generator().manual_seed(0)):
        samples = learner._encoded(minibatch)
        mean, std = policy.distribution(samples["actor"])
        log_prob = torch.distributions.Normal(mean, std).log_prob(samples["action"]).sum(-1)
        torch.testing.assert_close(log_prob, samples["action_log_prob"], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(policy.critic(samples["critic"]), samples["state_value"])


def naive_loss(cfg, policy, data, worlds):
    """PPO's loss of some worlds, by acting step after step: clipped surrogate, squared error, entropy."""
    settings, terms = cfg.algorithm, []
    for world in worlds:
        state = data["state"][0, world : world + 1]
        for t in range(HORIZON):
            if t and data["next", "done"][t - 1, world]:
                state = torch.zeros_like(state)
            obs = {"policy": data["policy"][t, world : world + 1]}
            act = policy.act(obs, torch.zeros(1, len(policy.log_std), dtype=torch.float64), state)
            state = act.state
            density = torch.distributions.Normal(act.action[0], policy.log_std.exp())
            log_prob = density.log_prob(data["action"][t, world]).sum()
            ratio = (log_prob - data["action_log_prob"][t, world]).exp()
            clipped = ratio.clamp(1 - settings.clip_ratio, 1 + settings.clip_ratio)
            advantage = data["advantage"][t, world, 0]
            gain = torch.minimum(ratio * advantage, clipped * advantage)
            error = (act.value[0] - data["value_target"][t, world, 0]).square()
            terms.append(
                -gain + settings.value_coef * error - settings.entropy_coef * density.entropy().sum()
            )
    return torch.stack(terms).mean()


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_gradient_is_that_of_a_naive_loop_in_float64(setting, compiled):
    cfg, env, policy, rollout = setting
    collect_with_ends(env, policy, rollout)
    learner = make_algorithm(cfg, policy)
    learner.advantage(rollout.data)
    data = rollout.data
    data["action_log_prob"] += 0.2 * torch.randn(HORIZON, NUM_ENVS)  # so that some ratios are clipped
    keys = ["policy", "action", "action_log_prob", "advantage", "value_target", "state_value"]
    generator = torch.Generator().manual_seed(3)
    worlds = torch.randperm(NUM_ENVS, generator=generator)[:2].tolist()
    (minibatch, _) = Sequences(data, keys, 2 * HORIZON).shuffled(generator.manual_seed(3))
    gradients, _ = (compiled_step(learner._gradients) if compiled else learner._gradients)(minibatch)
    exact = copy.deepcopy(policy).double()
    loss = naive_loss(cfg, exact, data.double(), worlds)
    expected = torch.autograd.grad(loss, list(exact.parameters()))
    for (name, _), ours, theirs in zip(policy.named_parameters(), gradients, expected, strict=True):
        assert theirs.abs().max() > 0, name
        assert (ours - theirs).abs().max() <= 1e-4 * theirs.abs().max(), name


def test_broken_steps_are_lived_through_but_teach_nothing(setting):
    cfg, env, policy, rollout = setting
    collect_with_ends(env, policy, rollout)
    learner = make_algorithm(cfg, policy)
    learner.advantage(rollout.data)
    data = rollout.data
    data["valid"][5, :] = False
    data["valid"][7, 2] = False
    gradients = []
    for poison in (0.0, 100.0):
        data["advantage"][~data["valid"]] = poison
        data["value_target"][~data["valid"]] = poison
        keys = ["policy", "action", "action_log_prob", "advantage", "value_target", "state_value"]
        minibatches = Sequences(data, keys, 2 * HORIZON).shuffled(torch.Generator().manual_seed(0))
        gradients.append(learner._gradients(next(minibatches))[0])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_a_captured_step_takes_sequences(setting):
    """As on CUDA, with a recorder that runs what it was given: replays read every minibatch's parts anew."""
    cfg, env, policy, rollout = setting
    collect_with_ends(env, policy, rollout)
    theirs = copy.deepcopy(policy)
    learner, reference = make_algorithm(cfg, policy), make_algorithm(cfg, theirs)
    learner.advantage(rollout.data)
    captured = CapturedStep(learner._step, capture=lambda function: function)
    for seed in range(NUM_WARM_UP):
        for minibatch in learner._cut(rollout.data).shuffled(torch.Generator().manual_seed(seed)):
            assert torch.equal(captured(minibatch), reference._step(minibatch.clone()))
            minibatch["samples"].zero_()
    for ours, weight in zip(policy.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(ours, weight)


def test_actor_and_critic_each_remember_their_own_group():
    limits = ((-1.0,), (1.0,))
    spec = EnvSpec("toy", 4, {"policy": 5, "critic": 7}, 1, *limits, ("hinge",), 50.0, 100, CPU)
    policy = make_network(make_cfg().network, spec)
    assert (policy.actor_state_width, policy.state_width) == (16, 32)
    obs = {"policy": torch.randn(3, 5), "critic": torch.randn(3, 7)}
    first = policy.initial_state(3)
    assert (first.shape, first.dtype, first.any().item()) == ((3, 32), torch.float32, False)
    act = policy.act(obs, torch.zeros(3, 1), first)
    other = policy.act(obs | {"critic": torch.randn(3, 7)}, torch.zeros(3, 1), first)
    assert torch.equal(act.state[:, :16], other.state[:, :16])
    assert not torch.equal(act.state[:, 16:], other.state[:, 16:])
    action, state = policy.mean_step(obs, first)
    alone, actors_state = policy.mean_step(obs, first[:, :16])
    assert torch.equal(action, alone)
    assert torch.equal(actors_state, state[:, :16])
    assert torch.equal(actors_state, act.state[:, :16])


def test_acting_without_a_state_is_refused(setting):
    _, env, policy, _ = setting
    obs = dict(env.obs.items())
    for call in (
        lambda: policy.mean_action(obs),
        lambda: policy.value(obs),
        lambda: policy.act(obs, torch.zeros(NUM_ENVS, 8)),
        lambda: policy.encode(obs),
    ):
        with pytest.raises(TypeError, match="memory"):
            call()


def test_minibatches_that_cut_sequences_are_named(setting):
    _, _, policy, _ = setting
    message = (
        r"algorithm.minibatch_size = 32: network gru learns from whole sequences of algorithm.horizon = 24; "
        "set it to 48"
    )
    with pytest.raises(ConfigError, match=message):
        make_algorithm(make_cfg(minibatch_size=32), policy)
