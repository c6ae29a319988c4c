"""The task in docs/new_task.md, taken from the page: it registers, runs, and keeps the contract."""

import re
import sys
import types
from pathlib import Path

import mujoco
import pytest
import torch
from torchrl.envs.utils import check_env_specs

from envs_gpu.make import make_env
from envs_gpu.tasks import TASKS
from envs_gpu.torchrl_env import TorchRLEnv

GUIDE = Path(__file__).parents[2] / "docs" / "new_task.md"
CPU = torch.device("cpu")
MOST_LINES = 45


def example():
    (code,) = re.findall(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    return code


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    """The page's task, registered for one test."""
    monkeypatch.setattr(TASKS, "_entries", dict(TASKS._entries))
    module = types.ModuleType("envs_gpu.tasks.puck")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(compile(example(), str(GUIDE), "exec"), module.__dict__)


def play(env, num_steps, seed=0):
    generator = torch.Generator().manual_seed(seed)
    results = []
    for _ in range(num_steps):
        action = 2 * torch.rand(env.num_envs, env.spec.action_dim, generator=generator) - 1
        result = env.step(action)
        results.append(torch.cat((result.final_obs["policy"], result.reward.unsqueeze(-1)), -1))
    return torch.stack(results)


def test_its_rules_are_few_lines():
    """What is between the scene's MJCF and the end of the file, without blank lines."""
    rules = re.sub(r'MJCF = """.*?"""', "", example(), flags=re.DOTALL)
    assert len([line for line in rules.splitlines() if line.strip()]) <= MOST_LINES


def test_it_is_a_task_like_any_other():
    env = make_env("puck", num_envs=3, device=CPU, seed=1)
    assert "puck" in TASKS.names()
    assert env.spec.obs_dims == {"policy": 6}
    assert env.spec.control_hz == pytest.approx(50)
    check_env_specs(TorchRLEnv(env))


def test_same_seed_same_trajectory_and_worlds_are_on_their_own():
    crowd, again, alone = (make_env("puck", num_envs=n, device=CPU, seed=5) for n in (4, 4, 1))
    generator = torch.Generator().manual_seed(0)
    goals = set()
    for _ in range(450):  # more than two episodes
        action = 2 * torch.rand(4, 2, generator=generator) - 1
        ours, same, single = crowd.step(action), again.step(action), alone.step(action[:1])
        assert torch.equal(ours.final_obs["policy"], same.final_obs["policy"])
        assert torch.equal(ours.obs["policy"][:1], single.obs["policy"])
        goals.add(tuple(ours.obs["policy"][0, 4:].tolist()))
    assert len(goals) >= 3  # a new one in every episode


def test_the_sensor_is_the_velocity_that_c_mujoco_has():
    env = make_env("puck", num_envs=2, device=CPU, seed=2)
    data = mujoco.MjData(env.physics.model)
    data.qpos[:] = env.physics.state.qpos[0]
    for action in ([1.0, -0.5], [0.3, 0.2]):
        result = env.step(torch.tensor([action, action]))
        data.ctrl[:] = action
        mujoco.mj_step(env.physics.model, data, nstep=2)
        assert result.obs["policy"][0, 2:4].tolist() == pytest.approx(data.qvel.tolist(), abs=1e-6)


def test_driving_to_the_goal_earns_more_than_chance():
    steered, chance = (make_env("puck", num_envs=64, device=CPU, seed=3) for _ in range(2))
    earned = 0.0
    for _ in range(199):
        to_goal, velocity = steered.obs["policy"][:, :2], steered.obs["policy"][:, 2:4]
        earned += steered.step(3 * to_goal - velocity).reward.mean().item()
    by_chance = play(chance, 199)[..., -1].mean(1).sum().item()
    assert earned > 100 > 2 * by_chance


@pytest.mark.slow
def test_compiled_it_is_the_same():
    eager, compiled = (make_env("puck", num_envs=2, device=CPU, compiled=flag) for flag in (False, True))
    torch.testing.assert_close(play(eager, 20), play(compiled, 20), rtol=1e-5, atol=1e-5)


def test_every_path_and_name_in_the_guide_exists():
    text = GUIDE.read_text(encoding="utf-8")
    root = GUIDE.parents[1]
    paths = set(re.findall(r"(?:envs_gpu|configs|tests|docs)/[\w/.]*\w", text)) - {"envs_gpu/tasks/puck.py"}
    assert len(paths) > 4
    assert [path for path in paths if not (root / path).exists()] == []
