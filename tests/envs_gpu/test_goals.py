"""Goals that tasks declare, against what their worlds observe and reward when they get another goal."""

from dataclasses import replace

import pytest
import torch

from envs_gpu.errors import EnvError
from envs_gpu.goals import Goals, ObservedGoals
from envs_gpu.make import make_env
from envs_gpu.observation import ObservationTerm
from envs_gpu.tasks import TASKS
from envs_gpu.tasks.base import Task

CPU = torch.device("cpu")
N = 8
WITH_GOALS = [name for name in TASKS.names() if TASKS.get(name).goals is not Task.goals]


def test_these_tasks_have_goals():
    assert WITH_GOALS == ["yam_lift", "yam_reach"]


@pytest.fixture(params=WITH_GOALS)
def env(request):
    """Worlds in which the tool has moved, and the cube, where there is one, is in the air."""
    env = make_env(request.param, num_envs=N, device=CPU, seed=0)
    random = torch.Generator().manual_seed(0)
    for _ in range(10):
        env.step(torch.rand(N, env.spec.action_dim, generator=random) - 0.5)
    if env.physics.model.nq > 8:
        qpos, qvel = env.physics.state.qpos.clone(), env.physics.state.qvel.clone()
        qpos[:, 10] = 0.15
        env.place(torch.ones(N, dtype=torch.bool), qpos, qvel)
    yield env
    env.close()


def stepped(env, state, goal):
    """Observations before and after a step from `state` whose goal is `goal`, and its reward."""
    name = env.task.goals().goal
    env.load_state_dict(state | {f"memory.{name}": goal})
    before = env.task.observe(env.physics.state, env._episode())
    result = env.step(torch.full((N, env.spec.action_dim), 0.3))
    after = {group: value.clone() for group, value in result.final_obs.items()}
    return {group: value.float() for group, value in before.items()}, after, result.reward.clone()


@pytest.mark.parametrize("groups", [("policy", "critic"), ("critic",)])
def test_a_replaced_goal_gives_what_the_task_gives_with_it(env, groups):
    """Observations before and after the step, and its reward, to the rounding of float32."""
    goals, state = env.goals(groups), env.state_dict()
    old = state[f"memory.{env.task.goals().goal}"].clone()
    new = old + 0.05 * torch.randn(N, 3, generator=torch.Generator().manual_seed(1))
    new[:4] = goals.achieved({group: env.obs[group] for group in groups})[:4]  # near to where the world is
    before, after, reward = stepped(env, state, old)
    own = {group: before[group] for group in groups}, {group: after[group] for group in groups}
    expected_before, expected_after, expected_reward = stepped(env, state, new)
    parameters = {name: env.parameters[name].float() for name in goals.parameters}
    achieved = goals.achieved(own[1])
    change = goals.reward(achieved, new, parameters) - goals.reward(achieved, old, parameters)
    assert change.abs().max() > 1e-3
    torch.testing.assert_close(reward + change, expected_reward, rtol=1e-5, atol=1e-6)
    for observation, expected in zip(own, (expected_before, expected_after), strict=True):
        assert torch.equal(goals.goal(observation), old)  # no goal changed by itself in this step
        replaced = goals.replace(observation, old, new)
        assert set(replaced) == set(groups)
        for group, value in replaced.items():
            assert not torch.equal(value, observation[group])
            torch.testing.assert_close(value, expected[group], rtol=1e-5, atol=1e-6)


def test_the_same_goal_changes_no_bit_and_another_ones_steps_stay_as_they_are(env):
    goals, observation = env.goals(["policy", "critic"]), dict(env.obs.items())
    own = goals.goal(observation)
    for old, new in ((own, own), (own + 1.0, own - 1.0)):
        for group, value in goals.replace(observation, old, new).items():
            assert torch.equal(value, observation[group])


def test_an_env_without_goals_says_so():
    env = make_env("cartpole_balance", num_envs=2, device=CPU)
    assert env.goals(["policy"]) is None
    env.close()


def test_what_is_achieved_is_read_without_noise_where_it_can_be():
    """Noise is on the group `policy`, and the noise on a term that depends on the goal stays."""
    read = lambda state, episode: None  # noqa: E731 - never called
    goal = ObservationTerm("goal", 1, read, kind="command", commands=("goal_m",))
    place, way = ObservationTerm("place", 1, read), ObservationTerm("way", 1, read)
    terms = {"policy": (place, goal, way), "critic": (place, goal, way)}
    goals = Goals("goal", "place", lambda *_: {}, dependent={"way": lambda place, goal: goal - place})
    observed = ObservedGoals(goals, terms)
    observation = {"policy": torch.tensor([[2.5, 5.0, 3.25]]), "critic": torch.tensor([[2.0, 5.0, 3.0]])}
    assert observed.achieved(observation) == 2.0
    replaced = observed.replace(observation, torch.tensor([[5.0]]), torch.tensor([[7.0]]))
    assert replaced["policy"].tolist() == [[2.5, 7.0, 5.25]]
    assert replaced["critic"].tolist() == [[2.0, 7.0, 5.0]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"goal": "nothing"}, "'nothing', which no group has"),
        ({"achieved": "wide"}, "'goal' and 'wide' cannot be compared"),
        ({"achieved": "shifted"}, "'goal' and 'shifted' cannot be compared"),
        ({"achieved": "clipped"}, "'clipped' belongs to goals and is clipped"),
        ({"dependent": {"clipped": None}}, "'clipped' belongs to goals and is clipped"),
    ],
)
def test_goals_that_cannot_be_replaced_are_refused(change, message):
    read = lambda state, episode: None  # noqa: E731 - never called
    terms = (
        ObservationTerm("goal", 1, read, kind="command", commands=("goal_m",)),
        ObservationTerm("place", 1, read),
        ObservationTerm("wide", 2, read),
        ObservationTerm("shifted", 1, read, offset=torch.zeros(1)),
        ObservationTerm("clipped", 1, read, clip=1.0),
    )
    goals = Goals("goal", "place", lambda *_: {})
    assert ObservedGoals(goals, {"policy": terms}).parameters == ()
    with pytest.raises(EnvError, match=message):
        ObservedGoals(replace(goals, **change), {"policy": terms})
