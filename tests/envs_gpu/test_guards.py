"""Broken worlds: who counts as one, what is kept of it, when it is too many; and buffers that overflow."""

import logging

import pytest
import torch

from envs_gpu.errors import BrokenWorldsError
from envs_gpu.guards import Cause, GuardOptions, causes
from envs_gpu.make import make_env
from envs_gpu.physics.base import PhysicsOptions, PhysicsState

CPU = torch.device("cpu")


def make(num_envs=4, task="ant", backend="mujoco", options=None, **guards):
    guards = GuardOptions(**guards)
    options = options or PhysicsOptions()
    return make_env(
        task, backend=backend, num_envs=num_envs, device=CPU, seed=4, options=options, guards=guards
    )


def actions(env, num_steps, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.rand(num_steps, env.num_envs, env.spec.action_dim, generator=generator) - 1


def spoil(env, cause, world):
    """Make one world's next step broken for one reason; returns the action that goes with it."""
    action = actions(env, 1)[0]
    if cause is Cause.ACTION:
        action[world, 0] = torch.inf  # which clipping would hide
    elif cause is Cause.STATE:
        env.physics.state.qvel[world, 3] = 2e10  # finite, and beyond what C MuJoCo goes on with
    else:
        place = {Cause.REWARD: "outcome", Cause.OBSERVATION: "observe"}[cause]
        original = getattr(env.task, place)

        def spoiled(*args):
            found = original(*args)
            target = found.reward if cause is Cause.REWARD else found
            name = next(iter(target))
            target[name] = target[name].clone()
            target[name][world] = torch.nan
            setattr(env.task, place, original)
            return found

        setattr(env.task, place, spoiled)
    return action


@pytest.mark.parametrize("cause", [*Cause])
def test_a_world_breaks_alone_for_every_cause(cause, tmp_path):
    env, healthy = make(dump_dir=tmp_path, max_broken_share=0.2), make()
    for move in actions(env, 6):
        env.step(move)
        healthy.step(move)
    moves = actions(env, 10, seed=1)
    result = env.step(spoil(env, cause, 2))
    healthy.step(actions(healthy, 1)[0])
    assert result.broken.tolist() == [False, False, True, False]
    assert result.terminated[2]
    assert not result.truncated[2]
    assert result.reward[2] == 0
    assert (result.final_obs["policy"][2] == 0).all()
    others = [0, 1, 3]
    for move in moves:
        ours, theirs = env.step(move), healthy.step(move)
        assert not ours.broken.any()
        assert torch.equal(ours.final_obs["policy"][others], theirs.final_obs["policy"][others])
        assert torch.equal(ours.reward[others], theirs.reward[others])
    with pytest.raises(BrokenWorldsError, match=f"their .*{cause.name.lower()}.*pi-envs replay .*_2.npz"):
        env.check()


def test_a_world_that_c_simulates_without_its_controls_is_broken():
    """C takes a control that is NaN for zero: the state stays finite, and is not the task's."""
    env = make()
    env.step(actions(env, 1)[0])
    control = env.task.control
    env.task.control = lambda action: torch.where(torch.arange(4)[:, None] == 1, torch.nan, control(action))
    result = env.step(actions(env, 1)[0])
    assert result.broken.tolist() == [False, True, False, False]


def test_memory_of_a_broken_world_is_not_spoiled():
    """What a curriculum reads at the reset is that of the step before."""
    env = make(task="go1_velocity", num_envs=2)
    seen = {}
    initial_state = env.task.initial_state
    env.task.initial_state = lambda episode: seen.update(episode.memory) or initial_state(episode)
    env.step(actions(env, 1)[0])
    env.physics.state.qvel[1] = torch.nan
    assert env.step(torch.full((2, 12), torch.nan)).broken.all()
    assert seen
    assert all(value.isfinite().all() for value in seen.values())


def test_broken_and_out_of_time_at_once_is_broken():
    env = make()
    env._episode_step.fill_(env.spec.max_episode_steps - 1)
    result = env.step(spoil(env, Cause.STATE, 1))
    assert result.broken.tolist() == [False, True, False, False]
    assert not result.truncated[1]
    assert result.terminated[1]
    assert result.truncated[0]


def test_a_world_that_starts_broken_shows_finite_observations():
    env = make()
    initial_state = env.task.initial_state

    def bad(episode):
        qpos, qvel = initial_state(episode)
        return qpos, torch.where(torch.arange(4)[:, None] == 0, torch.nan, qvel)

    env.task.initial_state = bad
    obs = env.reset(0)
    assert obs["policy"].isfinite().all()
    for move in actions(env, 3):
        result = env.step(move)
        assert result.broken.tolist() == [True, False, False, False]
        assert result.obs["policy"].isfinite().all()


@pytest.mark.parametrize(("num_broken", "stops"), [(2, False), (3, True), (4, True)])
def test_the_share_is_of_worlds_since_the_last_check(num_broken, stops):
    """A world that broke twice is one; and half is not more than half."""
    env = make(max_broken_share=0.5)
    env.check()
    for _ in range(2):
        env.physics.state.qvel[:num_broken] = torch.nan
        env.step(actions(env, 1)[0])
    if stops:
        with pytest.raises(
            BrokenWorldsError, match=rf"{num_broken} of 4 worlds .*max_broken_share = 0.5:"
        ) as error:
            env.check()
        assert "\n" not in str(error.value)
    env.check()


@pytest.mark.parametrize(("speed", "is_advised"), [(1e3, True), (torch.nan, False)])
def test_only_for_states_beyond_the_limits_the_limit_is_named(speed, is_advised):
    """A user may know a robot that is so fast; what is not finite is wrong for any."""
    env = make(task="cartpole_balance", max_broken_share=0.5)
    env.step(actions(env, 1)[0])
    env.physics.state.qvel[:] = speed
    env.step(actions(env, 1)[0])
    with pytest.raises(BrokenWorldsError) as error:
        env.check()
    assert ("raise guards.energy_margin" in str(error.value)) == is_advised


def test_history_costs_nothing_without_a_folder_and_ends_with_the_last_dump(tmp_path):
    assert make()._guards._history is None
    env = make(dump_dir=tmp_path, max_dumps=2)
    for _ in range(4):
        env.physics.state.qvel[:2] = torch.nan
        env.step(actions(env, 1)[0])
        env.step(actions(env, 1)[0])
        env.pop_metrics()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "broken_000000001_0.npz",
        "broken_000000003_0.npz",
    ]
    assert env._guards._history is None
    assert make(dump_dir=tmp_path, max_dumps=2)._guards._history is None


def test_a_folder_that_cannot_be_written_does_not_end_the_run(tmp_path, caplog):
    (tmp_path / "file").touch()
    env = make(dump_dir=tmp_path / "file")
    env.physics.state.qvel[0] = torch.nan
    env.step(actions(env, 1)[0])
    env.pop_metrics()
    assert "no dumps of broken worlds" in caplog.text


def test_recording_changes_no_bit(tmp_path):
    plain, recording = make(), make(dump_dir=tmp_path)
    for move in actions(plain, 30):
        ours, theirs = plain.step(move), recording.step(move)
        assert torch.equal(ours.obs["policy"], theirs.obs["policy"])


CRAMPED = [
    # The worlds share the room for contacts: one that takes that of all needs the rows too.
    ({"max_contacts": 1, "max_constraints": 100}, "contacts", "raise env.max_contacts above 1"),
    ({"max_constraints": 3}, "constraints", "raise env.max_constraints above 3"),
]
ENGINES = [
    "warp",
    pytest.param("newton", marks=pytest.mark.slow),
    pytest.param("mjx", marks=pytest.mark.slow),
]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("limit", "lost", "advice"), CRAMPED)
def test_overflow_is_counted_and_names_the_setting(engine, limit, lost, advice, caplog):
    env = make(backend=engine, options=PhysicsOptions(mjx_impl="warp", **limit))
    moves = actions(env, 25)  # the ants fall on all fours
    with caplog.at_level(logging.WARNING, logger="envs_gpu.guards"):
        for move in moves:
            env.step(move)
        metrics = env.pop_metrics()
        count = metrics["physics/overflow"]
        assert 1 <= count <= 4
        (warning,) = [record.message for record in caplog.records]
        assert warning == f"{int(count)} of 4 worlds lost {lost}, their physics is wrong: {advice}"
        for move in moves:
            env.step(move)
        env.pop_metrics()
    assert len(caplog.records) == 1, "said once"


def test_overflow_is_counted_per_window():
    env = make(backend="warp", options=PhysicsOptions(max_contacts=1))
    for move in actions(env, 25):
        env.step(move)
    assert env.pop_metrics()["physics/overflow"] > 0
    qpos = env.physics.state.qpos.clone()
    qpos[:, 2] = 0.9  # nobody touches the floor
    env.place(torch.ones(4, dtype=torch.bool), qpos, torch.zeros_like(env.physics.state.qvel))
    env.step(torch.zeros(4, 8))
    assert env.pop_metrics()["physics/overflow"] == 0


def test_enough_room_is_silent_and_the_same_physics(caplog):
    roomy, automatic = (make(backend="warp", options=PhysicsOptions(max_contacts=n)) for n in (200, None))
    for move in actions(roomy, 25):
        ours, theirs = roomy.step(move), automatic.step(move)
    torch.testing.assert_close(ours.obs["policy"], theirs.obs["policy"], rtol=1e-4, atol=1e-4)
    assert roomy.pop_metrics()["physics/overflow"] == automatic.pop_metrics()["physics/overflow"] == 0
    assert not caplog.records
    assert "physics/overflow" not in make().pop_metrics()


def test_compiled_sees_the_same_causes():
    """NaN and infinity in every place: a reduction that skips NaN would miss it."""
    env = make(num_envs=7)
    state = PhysicsState(*(view.clone() for view in env.physics.state))
    action, reward, obs = torch.zeros(7, 8), torch.zeros(7), {"policy": torch.zeros(7, 5)}
    targets = [action, state.ctrl, state.qpos, state.qvel, reward.unsqueeze(-1), obs["policy"]]
    expected = [Cause.ACTION, Cause.ACTION, Cause.STATE, Cause.STATE, Cause.REWARD, Cause.OBSERVATION, 0]
    for bad in (torch.nan, torch.inf, -torch.inf):
        for world, target in enumerate(targets):
            target[world, -1] = bad
        for function in (causes, torch.compile(causes, fullgraph=True)):
            assert function(action, state, reward, obs, env._limits).tolist() == expected
