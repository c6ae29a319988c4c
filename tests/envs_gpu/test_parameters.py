"""Task parameters: defaults, what changes and when, what is refused; and the named draws of all tasks."""

import math

import pytest
import torch

from envs_gpu.errors import SettingError
from envs_gpu.make import make_env, task_parameters
from envs_gpu.parameters import Parameter, with_defaults
from envs_gpu.physics.base import PhysicsOptions
from envs_gpu.physics.mujoco import MujocoPhysics
from envs_gpu.random import Draws, stream
from envs_gpu.sim_env import SimEnv
from envs_gpu.tasks import TASKS
from envs_gpu.tasks.cartpole_balance import CartpoleBalance
from envs_gpu.vec_env import VecEnv

CPU = torch.device("cpu")
every_task = pytest.mark.parametrize("task", TASKS.names())


def actions(env, num_steps, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.rand(num_steps, env.num_envs, env.spec.action_dim, generator=generator) - 1


def ant(num_envs=3, **settings):
    return make_env("ant", num_envs=num_envs, device=CPU, seed=1, **settings)


@every_task
def test_every_task_declares_what_its_parameters_are(task):
    env, declared = make_env(task, num_envs=2, device=CPU), task_parameters(task)
    assert declared
    assert [parameter.name for parameter in declared] == list(env.parameters)
    for parameter in declared:
        assert parameter.name == parameter.name.lower()
        assert parameter.doc
        assert parameter.unit
        assert env.parameters[parameter.name].tolist() == [parameter.default] * 2


@every_task
def test_every_parameter_is_read(task):
    """Compiled code may leave out what is not used; a parameter that does nothing is a lie."""
    env, read = make_env(task, num_envs=2, device=CPU), set()

    class Spy(dict):
        def __getitem__(self, name):
            read.add(name)
            return super().__getitem__(name)

    if task == "hold_pose":  # its example is an arm, which cannot fall
        read |= {"upright_weight", "upright_cosine_min", "height_share_min"}
    rows = env._parameters.rows
    env._parameters.rows = lambda table=None: Spy(rows(table))
    env._restart(torch.ones(2, dtype=torch.bool), {})
    env.step(actions(env, 1)[0])
    env.reset(0)
    env.restart(torch.ones(2, dtype=torch.bool))
    assert sorted(read) == sorted(env.parameters)


def test_ants_reward_is_the_formula_with_the_given_weights():
    given = {"forward_weight": 2.0, "healthy_reward": 3.0, "control_cost_weight": 0.25}
    plain, other = ant(), ant(task_parameters=given)
    for action in actions(plain, 20):
        before, after = plain.step(action), other.step(action)
        assert torch.equal(before.final_obs["policy"], after.final_obs["policy"])
        terms = before.metrics
        expected = (
            2.0 * terms["forward_velocity_m_s"]
            + 3.0 * terms["reward/healthy"]
            - 0.25 * action.square().sum(-1)
            + terms["reward/contact"]
        )
        torch.testing.assert_close(after.reward, expected)


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_change_counts_from_the_next_step_on_in_the_masked_worlds(compiled):
    env = ant(compiled=compiled)
    moves = actions(env, 4)
    assert_control_cost(env.step(moves[0]), moves[0], [0.5, 0.5, 0.5])
    env.set_parameters(torch.tensor([True, False, True]), {"control_cost_weight": 2.0})
    assert_control_cost(env.step(moves[1]), moves[1], [2.0, 0.5, 2.0])
    env.set_parameters(None, {"control_cost_weight": torch.tensor([0.0, 1.0, 4.0])})
    result = env.step(moves[2])
    assert_control_cost(result, moves[2], [0.0, 1.0, 4.0])
    assert not result.terminated.any()
    env.set_parameters(torch.tensor([False, True, False]), {"healthy_z_min_m": 0.99})
    assert env.step(moves[3]).terminated.tolist() == [False, True, False]


def assert_control_cost(result, action, weights):
    expected = -torch.tensor(weights) * action.square().sum(-1)
    torch.testing.assert_close(result.metrics["reward/control"], expected)


def test_commands_are_drawn_from_a_changed_range_at_the_next_reset():
    env = make_env("go1_velocity", num_envs=300, device=CPU)
    far = torch.arange(300) < 150
    env.step(torch.zeros(300, 12))
    env.set_parameters(far, {"command_forward_m_s": 3.0, "command_standing_share": 0.0})
    env.restart(torch.ones(300, dtype=torch.bool))
    command = env._memory["command"].abs()
    assert 2.8 < command[far, 0].max() <= 3.0
    assert 0.8 < command[~far, 0].max() <= 1.0
    assert (command[far] > 0).any(-1).all()


class Commanded(CartpoleBalance):
    """With a command that is drawn at every reset."""

    parameters = (*CartpoleBalance.parameters, Parameter("command_m", 1.0, "m", "the largest", low=0.0))

    def begin(self, state, episode):
        unit = episode.random.uniform("command", 1)[:, 0]
        return {"command_m": episode.parameters["command_m"] * unit}

    def remember(self, state, episode, action):
        return {"command_m": episode.memory["command_m"].clone()}


@pytest.mark.slow
def test_compiled_resets_read_what_was_changed_after_they_were_compiled():
    env = SimEnv(
        "commanded",
        Commanded(),
        lambda model: MujocoPhysics(model, 200, CPU, PhysicsOptions()),
        CPU,
        compiled=True,
    )
    everyone, far = torch.ones(200, dtype=torch.bool), torch.arange(200) < 100
    env.step(torch.zeros(200, 1))
    env.restart(everyone)
    assert 0.9 < env._memory["command_m"].max() < 1.0
    env.set_parameters(far, {"command_m": 5.0})
    env.restart(everyone)
    assert 4.5 < env._memory["command_m"][far].max() < 5.0
    assert 0.9 < env._memory["command_m"][~far].max() < 1.0


def test_state_dict_holds_them():
    env, other = ant(), ant(task_parameters={"forward_weight": 7.0})
    env.set_parameters(torch.tensor([True, False, False]), {"control_cost_weight": 2.0})
    other.load_state_dict({name: value.clone() for name, value in env.state_dict().items()})
    assert other.parameters["forward_weight"].tolist() == [1.0] * 3
    assert other.parameters["control_cost_weight"].tolist() == [2.0, 0.5, 0.5]
    for action in actions(env, 30):
        assert torch.equal(env.step(action).reward, other.step(action).reward)


def test_a_reset_keeps_them():
    env = ant(task_parameters={"control_cost_weight": 2.0})
    env.set_parameters(None, {"forward_weight": 3.0})
    env.reset(5)
    assert env.parameters["control_cost_weight"].tolist() == [2.0] * 3
    assert env.parameters["forward_weight"].tolist() == [3.0] * 3


REFUSED = {
    "misspelt": (
        {"contol_cost_weight": 1.0},
        "env.task.contol_cost_weight = 1.0: ant has no such parameter; did you mean 'control_cost_weight'?",
    ),
    "negative": (
        {"control_cost_weight": -1.0},
        "env.task.control_cost_weight = -1.0: it is out of range; set it to at least 0; its default is 0.5",
    ),
    "with a unit": (
        {"healthy_z_min_m": math.inf},
        "env.task.healthy_z_min_m = inf: it is out of range; set it to any finite number; its default is "
        "0.2 m",
    ),
    "nan": ({"forward_weight": math.nan}, "env.task.forward_weight = nan: it is out of range; set it to any"),
    "text": (
        {"forward_weight": "much"},
        "env.task.forward_weight = 'much': it is not a number; set it",
    ),
    "bool": ({"forward_weight": True}, "env.task.forward_weight = True: it is not a number; set it to any"),
    "shape": (
        {"forward_weight": torch.ones(2)},
        "env.task.forward_weight = 'tensor [2]': its shape is wrong; give one number for all worlds, or a "
        "tensor [3] with one for each",
    ),
    "one world": (
        {"control_cost_weight": torch.tensor([1.0, -2.0, 1.0])},
        "env.task.control_cost_weight = -2.0: it is out of range; set it to at least 0",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_refused_in_one_line_and_nothing_is_written(case):
    values, message = REFUSED[case]
    env = ant()
    with pytest.raises(SettingError) as caught:
        env.set_parameters(None, {"healthy_reward": 9.0} | values)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, ValueError)
    assert caught.value.field == f"env.task.{next(iter(values))}"
    assert env.parameters["healthy_reward"].tolist() == [1.0] * 3


def test_a_wrong_number_in_a_world_that_is_not_masked_is_not_written():
    env = ant()
    mask = torch.tensor([True, False, True])
    env.set_parameters(mask, {"control_cost_weight": torch.tensor([1.0, -2.0, 3.0])})
    assert env.parameters["control_cost_weight"].tolist() == [1.0, 0.5, 3.0]


@pytest.mark.parametrize("mask", [torch.ones(2, dtype=torch.bool), torch.ones(3)])
def test_another_mask_is_refused(mask):
    with pytest.raises(ValueError, match=r"it must be \[3\] torch.bool"):
        ant().set_parameters(mask, {"forward_weight": 1.0})


def test_make_env_refuses_too():
    with pytest.raises(SettingError, match=r"env.task.control_cost_weight = -1: it is out of range"):
        ant(task_parameters={"control_cost_weight": -1})


def test_an_env_of_another_family_has_none():
    name = "gymnasium/Pendulum-v1"
    assert task_parameters(name) == ()
    with pytest.raises(SettingError) as caught:
        make_env(name, num_envs=2, device=CPU, task_parameters={"forward_weight": 1.0})
    expected = "env.task.forward_weight = 1.0: gymnasium/Pendulum-v1 has no task parameters; remove it"
    assert str(caught.value) == expected
    env = make_env(name, num_envs=2, device=CPU)
    assert env.parameters == {}
    env.set_parameters(None, {})
    with pytest.raises(SettingError, match="has no task parameters"):
        env.set_parameters(None, {"forward_weight": 1.0})
    assert type(env).set_parameters is VecEnv.set_parameters


def test_ranges_in_words():
    said = [
        Parameter("a", 1.0, "1", "", *limits).range for limits in ((), (0.0,), (-math.inf, 2.0), (-1.0, 2.0))
    ]
    assert said == ["any finite number", "at least 0", "at most 2", "from -1 to 2"]
    with pytest.raises(ValueError, match="a: its default 3"):
        Parameter("a", 3.0, "1", "", 0.0, 2.0)


def test_other_defaults():
    first = (Parameter("a", 1.0, "1", "", low=0.0), Parameter("b", 2.0, "1", ""))
    assert [parameter.default for parameter in with_defaults(first, b=5.0)] == [1.0, 5.0]
    with pytest.raises(KeyError, match="no such parameters: c"):
        with_defaults(first, c=1.0)
    with pytest.raises(ValueError, match="must be at least 0"):
        with_defaults(first, a=-1.0)


@every_task
def test_no_two_draws_of_a_task_share_a_stream(task, monkeypatch):
    """Names differ in their streams, every draw has a name, and one name is always as wide."""
    widths, uniform = {}, Draws.uniform

    def recorded(self, name, width, *limits):
        widths.setdefault(name, set()).add(width)
        return uniform(self, name, width, *limits)

    monkeypatch.setattr(Draws, "uniform", recorded)
    env = make_env(task, num_envs=2, device=CPU)
    env.step(actions(env, 1)[0])
    assert widths
    assert all(isinstance(name, str) for name in widths)
    assert len({stream(name) for name in widths}) == len(widths)
    assert all(len(found) == 1 for found in widths.values()), widths
