"""What a task declares as its observation is what the policy sees, with what noise, and what is exported."""

import mujoco
import pytest
import torch

from envs_gpu.draw import Draw
from envs_gpu.errors import EnvError
from envs_gpu.make import make_env
from envs_gpu.observation import ObservationTerm, noise_scale, observe, remembered
from envs_gpu.randomize import Randomization
from envs_gpu.tasks import TASKS
from envs_gpu.tasks.base import Outcome, Task

CPU = torch.device("cpu")


class Cart(Task):
    """A cart on a rail that is to be at a place; it observes one term of every kind."""

    substeps = 1
    max_episode_steps = 10

    def scene(self):
        return mujoco.MjSpec.from_string("""<mujoco>
          <worldbody><body>
            <joint name="x" type="slide" axis="1 0 0"/><joint name="y" type="slide" axis="0 1 0"/>
            <geom size="0.1"/>
          </body></worldbody>
          <actuator><motor joint="x" ctrlrange="-1 1"/></actuator>
        </mujoco>""")

    def bind(self, model, device):
        super().bind(model, device)
        self.middle = torch.tensor([1.0, -2.0], device=device)

    def initial_state(self, episode):
        qpos = torch.tensor([[1.5, 8.0]], dtype=torch.float64).repeat(len(episode.step), 1)
        return qpos, torch.zeros_like(qpos)

    def begin(self, state, episode):
        ones = torch.ones(len(state.qpos), 1)
        return {"place": 0.25 * ones, "last_action": 0.0 * ones}

    def remember(self, state, episode, action):
        return {"place": episode.memory["place"].clone(), "last_action": action.clone()}

    def observation(self):
        position = ObservationTerm(
            "position", 2, self.position, "m", offset=self.middle, clip=5.0, low=-20.0, high=20.0, noise=0.01
        )
        policy = (
            position,
            ObservationTerm("place", 1, remembered("place"), "m", "command", commands=("place_m",)),
            ObservationTerm("velocity", 2, lambda state, _: state.qvel, "m/s"),
            ObservationTerm("last_action", 1, remembered("last_action"), kind="last_action"),
        )
        return {"policy": policy, "critic": (*policy, ObservationTerm("height", 1, self.height, "m"))}

    def position(self, state, episode):
        return state.qpos

    def height(self, state, episode):
        return 3.0 + torch.zeros_like(state.qpos[:, :1])

    def outcome(self, state, episode, action):
        still = torch.zeros_like(state.qpos[:, 0])
        return Outcome({"still": still}, still > 0, {})


class WideCart(Cart):
    """Its position is declared as three numbers and read as two."""

    def observation(self):
        term = ObservationTerm("position", 3, self.position, "m", offset=torch.zeros(3))
        return {"policy": (term,)}


class ObservingCart(Cart):
    """It declares terms, and observes something else."""

    def observe(self, state, episode):
        return {"policy": state.qpos}


class BlindCart(Cart):
    def observation(self):
        return {"critic": super().observation()["critic"]}


@pytest.fixture
def make(monkeypatch):
    """Task class and settings -> an env of it."""
    monkeypatch.setattr(TASKS, "_entries", dict(TASKS._entries))

    def make(cls, **settings):
        TASKS._entries["cart"] = cls
        return make_env("cart", num_envs=2, device=CPU, **settings)

    return make


def reading(name="x", width=1, **fields):
    """A term that reads `fields["value"]`, or zeros."""
    value = fields.pop("value", torch.zeros(3, width))
    return ObservationTerm(name, width, lambda state, episode: value, **fields)


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_term_is_read_then_shifted_then_clipped(make, compiled):
    env = make(Cart, compiled=compiled)
    # 1.5 - 1.0, and 8.0 + 2.0 clipped to 5; the place, no velocity, no action yet
    start = [0.5, 5.0, 0.25, 0.0, 0.0, 0.0]
    assert env.obs["policy"].tolist() == [start] * 2
    assert env.obs["critic"].tolist() == [[*start, 3.0]] * 2
    after = env.step(torch.full((2, 1), 0.5)).obs["policy"]
    assert after[:, 5].tolist() == [0.5, 0.5]


def test_interface_and_widths_need_no_override(make):
    env = make(Cart)
    interface = env.interface()
    assert env.spec.obs_dims == {"policy": 6, "critic": 7}
    assert [(term.name, term.width, term.unit, term.kind, term.noise) for term in interface.terms] == [
        ("position", 2, "m", "sensor", 0.01),
        ("place", 1, "m", "command", 0.0),
        ("velocity", 2, "m/s", "sensor", None),
        ("last_action", 1, "1", "last_action", 0.0),
    ]
    position = interface.terms[0]
    assert (position.offset.tolist(), position.clip) == ([1.0, -2.0], 5.0)
    assert (position.low, position.high) == (-20.0, 20.0)
    assert interface.commands == ("place_m",)
    assert interface.targets.high.tolist() == [1.0]


def test_the_interface_and_a_reading_give_the_observation(make):
    """What an export computes from a robot's readings is what the env showed."""
    env = make(Cart)
    state, episode = env.physics.state, env._episode()
    shown = []
    for term, declared in zip(env.interface().terms, env.task.observation_groups["policy"], strict=True):
        value = declared.read(state, episode)
        value = value if term.offset is None else value - term.offset
        shown.append(value.clamp(-term.clip, term.clip))
    assert torch.equal(torch.cat(shown, -1).float(), env.obs["policy"])


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_noise_is_on_sensors_alone_and_as_large_as_declared(make, compiled):
    """Where nothing is declared its factor is 1; the run's noise is always 2 here."""
    two = Randomization(observation_noise=Draw(low=2.0, high=2.0))
    noisy, quiet = (make(Cart, randomization=knobs, compiled=compiled) for knobs in (two, Randomization()))
    still = torch.zeros(2, 1)
    for seen, truth in ((noisy.obs, quiet.obs), (noisy.step(still).obs, quiet.step(still).obs)):
        noise = seen["policy"] - truth["policy"]
        expected = torch.tensor([0.02, 0.02, 0.0, 2.0, 2.0, 0.0]).expand(2, 6)
        torch.testing.assert_close(noise, expected, rtol=0, atol=1e-6)
        assert torch.equal(seen["critic"], truth["critic"])


def test_noise_scale_has_an_entry_for_every_number():
    terms = (
        reading("a", 2, noise=0.5),
        reading("b", 1),
        reading("c", 2, kind="last_action"),
        reading("d", 1, kind="command", commands=("d_m",)),
    )
    scale = noise_scale(terms, CPU)
    assert scale.tolist() == [0.5, 0.5, 1.0, 0.0, 0.0, 0.0]
    assert scale.dtype == torch.float32


@pytest.mark.parametrize("task", TASKS.names())
def test_commands_and_last_actions_have_no_noise(task):
    env = make_env(task, num_envs=1, device=CPU)
    terms = env.task.observation_groups["policy"]
    parts = noise_scale(terms, CPU).split([term.width for term in terms])
    for term, scale in zip(terms, parts, strict=True):
        assert (scale > 0).all() == (term.kind == "sensor"), term.name
    env.close()


def test_a_term_of_two_groups_is_read_once():
    calls = []

    def read(state, episode):
        calls.append(None)
        return torch.zeros(3, 2)

    shared = ObservationTerm("shared", 2, read)
    seen = observe({"policy": (shared,), "critic": (shared, reading("more", 1))}, None, None)
    assert {name: tuple(value.shape) for name, value in seen.items()} == {"policy": (3, 2), "critic": (3, 3)}
    assert len(calls) == 1


def test_flags_and_dtypes_may_be_mixed():
    terms = (
        reading("flag", value=torch.tensor([[True], [False]])),
        reading("number", value=torch.tensor([[0.25], [0.5]], dtype=torch.float64)),
    )
    assert observe({"policy": terms}, None, None)["policy"].tolist() == [[1.0, 0.25], [0.0, 0.5]]


@pytest.mark.parametrize(
    ("cls", "message"),
    [
        (
            WideCart,
            r"task cart: observation term 'position' \(policy\) reads \[2, 2\], but declares \[2, 3\];",
        ),
        (
            ObservingCart,
            r"task cart: its observe\(\) gives {'policy': 2}, its observation\(\) declares",
        ),
        (BlindCart, "BlindCart declares no observation group 'policy'; return one"),
    ],
)
def test_an_observation_that_is_not_as_declared_is_one_clear_error(make, cls, message):
    with pytest.raises(EnvError, match=message):
        make(cls)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"width": 0}, "'x': its width is 0"),
        ({"offset": torch.zeros(2)}, r"'x': its offset is \[2\]; make it \[1\]"),
        ({"kind": "last_action", "noise": 0.1}, "'x': it is a last_action, but has noise 0.1"),
        ({"kind": "command", "noise": 0.1, "commands": ("x_m",)}, "'x': it is a command, but has noise 0.1"),
        ({"kind": "command"}, "'x': it is a command, but names 0 commands; name 1"),
        ({"commands": ("x_m",)}, "'x': it is a sensor, but names 1 commands; name 0"),
    ],
)
def test_a_term_that_contradicts_itself_is_an_error(fields, message):
    with pytest.raises(EnvError, match=message):
        reading(**fields)


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (lambda: {"policy": ()}, "group 'policy' has no terms"),
        (lambda: {"policy": (reading("x"), reading("x"))}, "group 'policy' has two terms 'x'"),
        (lambda: {"policy": (reading("x"),), "critic": (reading("x"),)}, "have different terms 'x'"),
    ],
)
def test_names_of_terms_are_unique(make, groups, message):
    class Named(Cart):
        def observation(self):
            return groups()

    with pytest.raises(EnvError, match=message):
        make(Named)


class Rocket(Cart):
    """Its observation is not cut into terms."""

    def observation(self):
        return {}

    def observe(self, state, episode):
        return {"policy": torch.cat((state.qpos, state.qvel), -1)}


def test_a_task_may_observe_without_terms(make):
    env = make(Rocket, randomization=Randomization(observation_noise=Draw(low=1.0, high=1.0)))
    assert [(term.name, term.width) for term in env.interface().terms] == [("observation", 4)]
    assert env.obs["policy"].tolist() == [[2.5, 9.0, 1.0, 1.0]] * 2
