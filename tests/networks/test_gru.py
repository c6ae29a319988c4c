"""The recurrent policy: its arithmetic is torch's, its gradient a naive loop's, its state travels along."""

import copy
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from envs_gpu.make import make_env
from envs_gpu.vec_env import EnvSpec
from pi_incubator.config import ConfigError, ExperimentConfig, load_config
from pi_incubator.data.sharded import ShardedRandom
from pi_incubator.layers.encoder import Encoder
from pi_incubator.layers.gru_scan import gru_scan
from pi_incubator.training.captured import NUM_WARM_UP, CapturedStep
from pi_incubator.training.compiled import compiled_step
from pi_incubator.training.minibatches import Sequences
from pi_incubator.training.policy_gradient import ACTOR_FEATURES, CRITIC_FEATURES
from tests.envs import StillEnv, record_results
from tests.learning import make_algorithm, state_of

CONFIG = str(Path(__file__).parents[2] / "configs" / "ppo" / "cartpole_balance.yaml")
CPU = torch.device("cpu")
T, N, D, H = 12, 5, 4, 6
NUM_ENVS, HORIZON = 4, 24
KEYS = ["policy", "action", "action_log_prob", "advantage", "value_target", "state_value"]


def make_cfg(**algorithm):
    settings = {"horizon": HORIZON, "minibatch_size": 2 * HORIZON, "entropy_coef": 0.01} | algorithm
    network = {"name": "gru", "hidden_sizes": [16, 8]}
    env = {"name": "ant", "num_envs": NUM_ENVS}
    return ExperimentConfig.model_validate({"env": env, "network": network, "algorithm": settings})


def make_ppo(cfg, env):
    """The same weights every time."""
    torch.manual_seed(0)
    ppo = make_algorithm(cfg, env)
    with torch.no_grad():
        ppo.policy.head[-1].weight.mul_(30.0)  # or the actions would hardly depend on the state
    return ppo


@pytest.fixture
def setting():
    cfg = make_cfg()
    env = make_env("ant", num_envs=NUM_ENVS, device=CPU, seed=0)
    yield cfg, env, make_ppo(cfg, env)
    env.close()


def collect_with_ends(ppo):
    """A rollout after another one, in which one world is cut off by the clock and another one falls.

    What it stores are raw observations: a normalizer that was never committed changes nothing.
    """
    env = ppo.env
    ppo.collect()
    before = ppo.rollout.state.clone()
    env._episode_step[1] = env.spec.max_episode_steps - 2
    env.physics.state.qpos[2, 2] = 0.1  # m, below what Ant may sink to
    results = record_results(env)
    ppo.collect()
    return before, results


def order(seed):
    """Random numbers for minibatches of one shard of worlds."""
    return ShardedRandom(seed, "minibatches", range(1), CPU)


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


@pytest.mark.parametrize(("steps", "sequences"), [(2, 3), (3, 2)])
def test_starts_of_other_steps_or_sequences_are_refused(steps, sequences):
    inputs, begins = torch.zeros(3, 3, 6), torch.zeros(steps, sequences, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"do not belong to inputs \[3, 3, 6\]"):
        gru_scan(inputs, torch.zeros(sequences, 2), begins, torch.zeros(6, 2), torch.zeros(6))


def test_the_scan_is_a_proper_operator():
    """What torch.compile takes for granted of it: shapes, strides, no hidden aliases, its gradient."""
    random = torch.Generator().manual_seed(0)
    shapes = ((T, N, 3 * H), (N, H), (3 * H, H), (3 * H,))
    leaves = [torch.randn(shape, generator=random).requires_grad_() for shape in shapes]
    begins = torch.rand(T, N, generator=random) < 0.2
    torch.library.opcheck(torch.ops.pi_incubator.gru_scan, (*leaves[:2], begins, *leaves[2:]))


def test_a_sequence_is_what_its_steps_are(setting):
    """`Encoder.sequence` of any network, one step after the other, and the scan that a GRU has instead."""
    _, env, ppo = setting
    encoder = ppo.policy.encoder
    observation = torch.randn(T, N, env.spec.obs_dims["policy"])
    state, starts = torch.randn(N, encoder.state_width), torch.rand(T, N) < 0.2
    at_once = encoder.sequence(observation, state, starts)
    torch.testing.assert_close(at_once, Encoder.sequence(encoder, observation, state, starts))


def test_state_is_carried_and_starts_anew_with_the_episode(setting):
    _, _, ppo = setting
    before, results = collect_with_ends(ppo)
    model, data, state = ppo.model, ppo.rollout.data, before
    ended = {"truncated": 0, "terminated": 0}
    with torch.no_grad():
        for t, result in enumerate(results):
            act = model.act({"policy": data["policy"][t]}, state, ppo.rollout.noise[t])
            torch.testing.assert_close(data["action"][t], act.action)
            torch.testing.assert_close(data["state_value"][t, :, 0], act.value)
            final, state = model.value(result.final_obs, act.state), act.state.clone()
            done = result.truncated | result.terminated
            state[done] = 0.0
            following = model.value(result.obs, state)
            next_value = torch.where(done, final, following)
            told = ~result.terminated  # there is nothing to bootstrap where the task ended
            torch.testing.assert_close(data["next", "state_value"][t, told, 0], next_value[told])
            for name in ended:
                ended[name] += int(getattr(result, name).sum())
            if result.truncated.any():
                assert not torch.isclose(final, model.value(result.final_obs, state))[result.truncated].any()
    torch.testing.assert_close(ppo.rollout.state, state)
    assert min(ended.values()) >= 1
    assert torch.equal(data["state"], before.expand(HORIZON, -1, -1))


def test_the_ratio_is_one_before_the_first_step(setting):
    """The loss sees the policy that acted, over the whole rollout and its resets."""
    cfg, _, ppo = setting
    collect_with_ends(ppo)
    data = ppo.rollout.data
    assert data["next", "done"].any()
    ppo.advantage(data)
    for minibatch in Sequences(data, KEYS, cfg.algorithm.minibatch_size).shuffled(order(0)):
        samples = ppo._with_features(minibatch)
        mean, std = ppo.policy.moments_of(samples[ACTOR_FEATURES])
        log_prob = torch.distributions.Normal(mean, std).log_prob(samples["action"]).sum(-1)
        torch.testing.assert_close(log_prob, samples["action_log_prob"], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(ppo.critic.head(samples[CRITIC_FEATURES]), samples["state_value"])


def naive_loss(cfg, model, data, worlds):
    """PPO's loss of some worlds, by acting step after step: clipped surrogate, squared error, entropy."""
    settings, terms = cfg.algorithm, []
    log_std = model.policy.log_std
    for world in worlds:
        state = data["state"][0, world : world + 1]
        for t in range(HORIZON):
            if t and data["next", "done"][t - 1, world]:
                state = torch.zeros_like(state)
            obs = {"policy": data["policy"][t, world : world + 1]}
            act = model.act(obs, state, torch.zeros(1, len(log_std), dtype=torch.float64))
            state = act.state
            density = torch.distributions.Normal(act.action[0], log_std.exp())
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
    cfg, _, ppo = setting
    collect_with_ends(ppo)
    data = ppo.rollout.data
    ppo.advantage(data)
    data["action_log_prob"] += 0.2 * torch.randn(HORIZON, NUM_ENVS)  # so that some ratios are clipped
    worlds = order(3).permutations(NUM_ENVS)[0][:2].tolist()
    (minibatch, _) = Sequences(data, KEYS, 2 * HORIZON).shuffled(order(3))
    gradients, _ = (compiled_step(ppo._gradients) if compiled else ppo._gradients)(minibatch)
    exact = copy.deepcopy(ppo.model).double()
    loss = naive_loss(cfg, exact, data.double(), worlds)
    expected = torch.autograd.grad(loss, list(exact.parameters()))
    for (name, _), ours, theirs in zip(ppo.model.named_parameters(), gradients, expected, strict=True):
        assert theirs.abs().max() > 0, name
        assert (ours - theirs).abs().max() <= 1e-4 * theirs.abs().max(), name


def test_broken_steps_are_part_of_the_sequence_but_are_not_learned_from(setting):
    _, _, ppo = setting
    collect_with_ends(ppo)
    data = ppo.rollout.data
    ppo.advantage(data)
    data["valid"][5, :] = False
    data["valid"][7, 2] = False
    gradients = []
    for poison in (0.0, 100.0):
        data["advantage"][~data["valid"]] = poison
        data["value_target"][~data["valid"]] = poison
        minibatches = Sequences(data, KEYS, 2 * HORIZON).shuffled(order(0))
        gradients.append(ppo._gradients(next(minibatches))[0])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_a_captured_step_takes_sequences(setting):
    """As on CUDA, with a recorder that runs what it was given: replays read every minibatch's parts anew."""
    cfg, env, ppo = setting
    reference = make_ppo(cfg, env)
    collect_with_ends(ppo)
    ppo.advantage(ppo.rollout.data)
    captured = CapturedStep(ppo.step, capture=lambda function: function)
    for seed in range(NUM_WARM_UP):
        for minibatch in ppo._minibatches(ppo.rollout.data).shuffled(order(seed)):
            assert torch.equal(captured(minibatch), reference.step(minibatch.clone()))
            minibatch["samples"].zero_()
    ours, theirs = state_of(ppo), state_of(reference)
    for name in ours:
        if name.startswith(("policy.", "critic.", "optimizer.")) and "gathered" not in name:
            assert torch.equal(ours[name], theirs[name]), name


def test_actor_and_critic_each_remember_their_own_group():
    limits = ((-1.0,), (1.0,))
    spec = EnvSpec("toy", 4, {"policy": 5, "critic": 7}, 1, *limits, ("hinge",), 50.0, 100, CPU)
    ppo = make_ppo(make_cfg(), StillEnv(spec))
    model, policy = ppo.model, ppo.policy
    assert (policy.state_width, model.state_width) == (16, 32)
    obs = {"policy": torch.randn(3, 5), "critic": torch.randn(3, 7)}
    first = model.initial_state(3)
    assert (first.shape, first.dtype, first.any().item()) == ((3, 32), torch.float32, False)
    act = model.act(obs, first, torch.zeros(3, 1))
    other = model.act(obs | {"critic": torch.randn(3, 7)}, first, torch.zeros(3, 1))
    assert torch.equal(act.state[:, :16], other.state[:, :16])
    assert not torch.equal(act.state[:, 16:], other.state[:, 16:])
    action, state = policy.mean(obs, policy.initial_state(3))
    alone, alone_state = policy.mean({"policy": obs["policy"]}, policy.initial_state(3))
    assert torch.equal(action, alone)
    assert torch.equal(alone_state, state)
    assert torch.equal(state, act.state[:, :16])


def test_acting_without_a_state_is_refused(setting):
    _, env, ppo = setting
    obs, noise = dict(env.obs.items()), torch.zeros(NUM_ENVS, 8)
    for call in (
        lambda: ppo.policy.mean(obs),
        lambda: ppo.model.value(obs),
        lambda: ppo.model.act(obs, noise=noise),
    ):
        with pytest.raises(TypeError, match="state"):
            call()
    with pytest.raises(RuntimeError, match="batch"):
        ppo.model.encode(obs)


def test_minibatches_that_cut_sequences_are_named():
    message = (
        r"algorithm.minibatch_size = 32: network gru learns from whole sequences of algorithm.horizon = 24; "
        "set it to 48"
    )
    sizes = [f"env.num_envs={NUM_ENVS}", f"algorithm.horizon={HORIZON}", "algorithm.minibatch_size=32"]
    with pytest.raises(ConfigError, match=message):
        load_config(CONFIG, ["network.name=gru", *sizes])
