"""Every knob on every backend against C MuJoCo on that world's own model; distributions against scipy's."""

import copy

import mujoco
import numpy as np
import pytest
import scipy.stats
import torch

from envs_gpu.draw import Draw, RandomizationError
from envs_gpu.make import make_env
from envs_gpu.observation import noise_scale
from envs_gpu.physics import BACKENDS
from envs_gpu.physics.base import PhysicsOptions
from envs_gpu.random import WorldRandom
from envs_gpu.randomize import Delay, Randomization, Randomizer
from envs_gpu.terms.pose import Pose
from envs_gpu.zoo import ZooError

CPU = torch.device("cpu")
N, STEPS, SUBSTEPS = 4, 8, 4

# A box that slides on a floor, and an arm with a servo of position and one of velocity.
SCENE = """
<mujoco>
  <option timestep="0.004" cone="pyramidal"/>
  <worldbody>
    <geom name="floor" type="plane" size="5 5 1"/>
    <body name="sled" pos="0 0 0.0999">
      <freejoint name="sled"/>
      <geom name="sled" type="box" size="0.15 0.1 0.1" mass="1"/>
    </body>
    <body name="upper_arm" pos="2 0 1">
      <joint name="shoulder" axis="0 1 0" damping="0.2" armature="0.02"/>
      <geom name="upper_arm" type="capsule" size="0.04" fromto="0 0 0 0.3 0 0" mass="0.5"/>
      <site name="upper_arm" pos="0.15 0 0"/>
      <body name="lower_arm" pos="0.3 0 0">
        <joint name="elbow" axis="0 0 1" damping="0.1" armature="0.01"/>
        <geom name="lower_arm" type="capsule" size="0.03" fromto="0 0 0 0.3 0 0" mass="0.3"/>
      </body>
    </body>
  </worldbody>
  <actuator>
    <position name="shoulder" joint="shoulder" kp="20" kv="1" forcerange="-6 6"/>
    <velocity name="elbow" joint="elbow" kv="0.5"/>
  </actuator>
  <sensor><gyro name="gyro" site="upper_arm"/><actuatorfrc actuator="shoulder"/></sensor>
</mujoco>
"""
KNOBS = {
    "friction": Draw(low=0.3, high=0.8, shared=True),
    "mass": Draw(distribution="log_uniform", low=0.5, high=2.0),
    "inertia": Draw(distribution="normal", mean=1.2, std=0.1),
    "com": Draw(low=-0.03, high=0.03, names="*_arm"),
    "gains": Draw(low=0.5, high=1.5),
    "damping": Draw(low=0.5, high=2.0),
    "armature": Draw(low=0.5, high=2.0),
    "gravity": Draw(distribution="normal", mean=0.9, std=0.05),
    "motor_strength": Draw(low=0.6, high=1.2),
}
ENGINES = ["mujoco", "warp"]
SLOW_ENGINES = [pytest.param(name, marks=pytest.mark.slow) for name in ("newton", "mjx", "mjx-warp")]
# Of positions and velocities after eight control steps: float32 beside float64, and how C sums.
TOLERANCE = {"mujoco": 1e-9, "warp": 2e-4, "newton": 2e-4, "mjx": 2e-4, "mjx-warp": 2e-4}
INVERSE_WEIGHTS = ("dof_invweight0", "body_invweight0")


@pytest.fixture(scope="module")
def model():
    return mujoco.MjModel.from_xml_string(SCENE)


def build(engine, model, randomization, num_worlds=N, seed=0):
    """Worlds and their randomizer, after its first draw."""
    name, _, impl = engine.partition("-")
    options = PhysicsOptions(mjx_impl=impl or "jax", mjcf=SCENE, per_world=randomization.model_fields)
    physics = BACKENDS.get(name)(model, num_worlds, CPU, options)
    randomizer = Randomizer(randomization, physics, model.nu, SUBSTEPS * model.opt.timestep)
    begin(randomizer, everyone(num_worlds), WorldRandom(seed, num_worlds, CPU))
    return physics, randomizer


def begin(randomizer, mask, random):
    randomizer.begin(mask, random, torch.zeros(len(mask), dtype=torch.int64))


def everyone(num_worlds=N):
    return torch.ones(num_worlds, dtype=torch.bool)


def fields_of(randomizer):
    """What every world's model has, name -> `[N, ...]` float64."""
    return randomizer.knobs.fields(torch.arange(len(randomizer.knobs.numbers)))


def drawn(randomizer, knob):
    """The numbers `[N, elements, width]` of the elements that the knob turns."""
    numbers = randomizer.knobs.of(knob)
    return numbers[:, (numbers != numbers[:1]).any(0).any(-1)]


def start(model, num_worlds=N):
    """The box slides and turns, the arm hangs out sideways."""
    qpos, qvel = torch.tensor(model.qpos0).repeat(num_worlds, 1), torch.zeros(num_worlds, model.nv)
    qvel[:, 0], qvel[:, 5] = 1.0, 0.5
    return qpos, qvel.double()


CONTROL = torch.tensor([[-0.25, 2.0]])


def play(physics, num_steps=STEPS):
    physics.set_state(everyone(physics.num_worlds), *start(physics.model, physics.num_worlds))
    for _ in range(num_steps):
        physics.step(CONTROL.expand(physics.num_worlds, -1), SUBSTEPS)
    state = physics.state
    return torch.cat((state.qpos, state.qvel, state.sensordata), -1).double()


def referee(model, fields, world):
    """C MuJoCo's end of the same play on a model with this world's values, its constants derived by C."""
    own = copy.copy(model)
    for field, values in fields.items():
        owner = own.opt if field.startswith("opt.") else own
        getattr(owner, field.removeprefix("opt."))[:] = values[world].double().numpy()
    data = mujoco.MjData(own)
    mujoco.mj_setConst(own, data)
    for name in INVERSE_WEIGHTS:  # as stated: how soft constraints are stays the model's
        getattr(own, name)[:] = getattr(model, name)
    qpos, qvel = start(model, 1)
    data.qpos[:], data.qvel[:], data.ctrl[:] = qpos[0], qvel[0], CONTROL[0]
    for _ in range(STEPS):
        data.qacc_warmstart[:] = 0.0
        mujoco.mj_step(own, data, SUBSTEPS)
    mujoco.mj_forward(own, data)
    return torch.tensor(np.concatenate((data.qpos, data.qvel, data.sensordata)))


@pytest.mark.parametrize("knob", KNOBS)
@pytest.mark.parametrize("engine", [*ENGINES, SLOW_ENGINES[0]])
def test_each_knob_moves_the_world_as_c_does(engine, knob, model):
    physics, randomizer = build(engine, model, Randomization(**{knob: KNOBS[knob]}))
    played, nominal = play(physics), referee(model, {}, 0)
    for world in range(N):
        expected = referee(model, fields_of(randomizer), world)
        torch.testing.assert_close(played[world], expected, rtol=TOLERANCE[engine], atol=TOLERANCE[engine])
        assert (expected - nominal).abs().max() > 5e-3
    assert len(played.unique(dim=0)) > 2  # two may pull as hard as the servo can


@pytest.mark.parametrize("engine", [*ENGINES, *SLOW_ENGINES])
def test_all_knobs_at_once_move_the_world_as_c_does(engine, model):
    physics, randomizer = build(engine, model, Randomization(**KNOBS))
    played = play(physics)
    for world in range(N):
        expected = referee(model, fields_of(randomizer), world)
        torch.testing.assert_close(played[world], expected, rtol=TOLERANCE[engine], atol=TOLERANCE[engine])


@pytest.mark.parametrize("engine", [*ENGINES, *SLOW_ENGINES])
def test_only_the_chosen_worlds_change_and_are_saved(engine, model):
    physics, randomizer = build(engine, model, Randomization(**KNOBS))
    before, played = physics.state_dict(), play(physics)
    fields = {name: value for name, value in before.items() if name.startswith("model.")}
    assert len(fields) == len(Randomization(**KNOBS).model_fields)
    some = torch.tensor([False, True, False, False])
    random = WorldRandom(0, N, CPU)
    random.advance(some)
    begin(randomizer, some, random)
    for name, value in physics.state_dict().items():
        if name in fields:
            assert torch.equal(value[~some], fields[name][~some]), name
            assert not torch.equal(value[some], fields[name][some]), name
    again = play(physics)
    assert torch.equal(again[~some], played[~some])
    assert not torch.equal(again[some], played[some])
    physics.load_state_dict(before)
    assert torch.equal(play(physics), played)


@pytest.mark.parametrize("engine", [*ENGINES, *SLOW_ENGINES])
def test_a_push_adds_to_velocities_of_the_chosen(engine, model):
    physics, _ = build(engine, model, Randomization())
    physics.set_state(everyone(), *start(model))
    before, change = physics.state.qvel.clone(), torch.randn(N, model.nv)
    some = torch.tensor([True, False, True, False])
    physics.push(some.nonzero().squeeze(-1), change[some])
    assert torch.equal(physics.state.qvel[~some], before[~some])
    torch.testing.assert_close(physics.state.qvel[some], (before + change.to(before))[some])
    physics.step(torch.zeros(N, model.nu), 1)
    assert (physics.state.qvel - before)[some].abs().max() > 0.1


def test_knobs_multiply(model):
    knobs = {name: KNOBS[name] for name in ("gains", "motor_strength", "damping", "mass", "inertia")}
    _, randomizer = build("mujoco", model, Randomization(**knobs))
    value = {name: randomizer.knobs.of(name)[..., 0].numpy() for name in knobs}
    fields = {name: field.numpy() for name, field in fields_of(randomizer).items()}
    strength, gains = value["motor_strength"], value["gains"]
    damping = value["damping"][:, model.actuator_trnid[:, 0]]
    servo, brake = 0, 1  # kp = 20, kv = 1; kv = 0.5
    expected = {
        ("actuator_gainprm", servo, 0): 20 * gains * strength,
        ("actuator_biasprm", servo, 1): -20 * gains * strength,
        ("actuator_biasprm", servo, 2): -1 * damping * strength,
        ("actuator_forcerange", servo, 1): 6 * strength,
        ("actuator_gainprm", brake, 0): 0.5 * damping * strength,
        ("actuator_biasprm", brake, 2): -0.5 * damping * strength,
    }
    for (field, actuator, column), numbers in expected.items():
        np.testing.assert_allclose(fields[field][:, actuator, column], numbers[:, actuator], rtol=1e-12)
    turning = model.body_inertia * (value["mass"] * value["inertia"])[..., None]
    np.testing.assert_allclose(fields["body_inertia"], turning, rtol=1e-12)
    arm = [model.body(name).id for name in ("upper_arm", "lower_arm")]
    hanging = (model.body_mass * value["mass"])[:, arm].sum(-1)
    np.testing.assert_allclose(fields["body_subtreemass"][:, arm[0]], hanging, rtol=1e-12)


SHAPES = {
    "uniform": (Draw(low=0.5, high=1.5), scipy.stats.uniform(0.5, 1.0)),
    "log_uniform": (Draw("log_uniform", low=0.5, high=2.0), scipy.stats.loguniform(0.5, 2.0)),
    "normal": (Draw("normal", mean=1.0, std=0.1), scipy.stats.norm(1.0, 0.1)),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("knob", KNOBS)
def test_numbers_are_distributed_as_stated(knob, shape, model):
    draw, stated = SHAPES[shape]
    element = "*_arm" if knob == "com" else "*"
    draw = Draw(**{**vars(draw), "names": element})
    _, randomizer = build("mujoco", model, Randomization(**{knob: draw}), num_worlds=2000, seed=5)
    numbers = drawn(randomizer, knob).flatten(1)
    for column in numbers.T.numpy():
        assert scipy.stats.kstest(column, stated.cdf).pvalue > 1e-3
    if numbers.shape[1] > 1:  # every element has numbers of its own
        correlation = np.corrcoef(numbers.T.numpy())
        assert np.abs(correlation - np.eye(len(correlation))).max() < 0.1
    shared = Draw(**{**vars(draw), "shared": True})
    _, randomizer = build("mujoco", model, Randomization(**{knob: shared}))
    numbers = drawn(randomizer, knob)
    assert torch.equal(numbers, numbers[:, :1].expand_as(numbers))


def test_patterns_choose_elements(model):
    draw = Draw(low=2.0, high=3.0, names="*_arm")
    _, randomizer = build("mujoco", model, Randomization(mass=draw))
    changed = (fields_of(randomizer)["body_mass"] != torch.tensor(model.body_mass)).all(0)
    assert [model.body(i).name for i in range(model.nbody) if changed[i]] == ["upper_arm", "lower_arm"]


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        (
            {"friction": Draw(names="foot*")},
            "randomization.friction.names = 'foot\\*': matches no geom .* sled",
        ),
        ({"pushes": Draw(names="base")}, "randomization.pushes.names = 'base': matches no joint"),
        ({"com": Draw(names="sled")}, "randomization.com.names = 'sled': matches 'sled', whose mass matrix"),
    ],
)
def test_what_the_model_cannot_have_is_named(knobs, message, model):
    with pytest.raises(RandomizationError, match=message):
        build("mujoco", model, Randomization(**knobs))


def test_families_written_elsewhere_are_not_randomized():
    with pytest.raises(ZooError, match="cannot be randomized"):
        make_env("brax/ant", num_envs=2, device=CPU, randomization=Randomization(gravity=Draw(high=1)))


def test_moving_along_the_tangent_is_integration(model):
    generator = torch.Generator().manual_seed(0)
    qpos = torch.tensor(model.qpos0).repeat(N, 1)
    qpos[:, 3:7] = torch.nn.functional.normalize(torch.randn(N, 4, generator=generator).double(), dim=-1)
    change = torch.randn(N, model.nv, generator=generator).double()
    change[0] = 0.0
    moved = Pose(model, CPU).displace(qpos, change)
    for world in range(N):
        expected = qpos[world].numpy().copy()
        mujoco.mj_integratePos(model, expected, change[world].numpy(), 1.0)
        np.testing.assert_allclose(moved[world], expected, atol=1e-14)


# What an env does with them, on a task that falls and is reset now and then.
ENV_KNOBS = {
    "friction": Draw(low=0.5, high=1.0),
    "mass": Draw(low=0.8, high=1.2, per="interval", interval_s=0.5),
    "gravity": Draw(low=0.9, high=1.1),
    "damping": Draw(low=0.5, high=2.0),
    "motor_strength": Draw(low=0.8, high=1.2),
    "action_delay": Delay(0, 2),
    "observation_noise": Draw("normal", mean=0.0, std=0.1),
    "pushes": Draw(low=-0.5, high=0.5, per="interval", interval_s=0.5),
    "initial_position": Draw(low=-0.1, high=0.1, names="hip*"),
    "initial_velocity": Draw(low=-0.1, high=0.1),
}


def make(num_envs=4, seed=0, history=2, task="ant", backend="mujoco", compiled=False, **knobs):
    return make_env(
        task,
        backend=backend,
        num_envs=num_envs,
        device=CPU,
        seed=seed,
        compiled=compiled,
        randomization=Randomization(**knobs),
        observation_history=history,
    )


def roll(env, moves, end_at=()):
    """What the policy saw and was paid `[T, N, ...]`; at some steps the odd worlds' time is up."""
    seen = []
    for step, action in enumerate(moves):
        if step in end_at:
            env._episode_step[1::2] = env.spec.max_episode_steps
        result = env.step(action)
        seen.append(torch.cat((result.obs["policy"], result.final_obs["policy"], result.reward[:, None]), -1))
    return torch.stack(seen)


def moves_of(env, num_steps, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.rand(num_steps, env.num_envs, env.spec.action_dim, generator=generator) - 1


@pytest.mark.parametrize("backend", ENGINES)
def test_worlds_are_their_own(backend):
    """Same seed, same trajectory; the first of nine does what it does alone, resets of others or not."""
    alone, crowd, twin = (make(n, seed=3, backend=backend, **ENV_KNOBS) for n in (1, 9, 9))
    moves = moves_of(crowd, 30)
    played = roll(crowd, moves, end_at=(5, 17))
    assert torch.equal(played, roll(twin, moves, end_at=(5, 17)))
    assert torch.equal(played[:, :1], roll(alone, moves[:, :1]))
    crowd.reset(3)
    assert torch.equal(played, roll(crowd, moves, end_at=(5, 17)))


@pytest.mark.parametrize("backend", [*ENGINES, SLOW_ENGINES[0]])
def test_continues_bit_for_bit(backend):
    env, other = (make(seed=seed, backend=backend, **ENV_KNOBS) for seed in (2, 99))
    moves = moves_of(env, 30)
    roll(env, moves[:15], end_at=(7,))
    other.load_state_dict({name: value.clone() for name, value in env.state_dict().items()})
    assert torch.equal(roll(env, moves[15:], end_at=(5,)), roll(other, moves[15:], end_at=(5,)))


def test_many_worlds_in_parts_are_the_same_worlds():
    """On a CPU a compiled redraw takes eight worlds at a time, and fills up with the last one."""
    whole, parts = (make(19, seed=4, **ENV_KNOBS) for _ in range(2))
    parts._randomizer._is_compiled = True
    moves = moves_of(whole, 12)
    assert torch.equal(roll(whole, moves, end_at=(3, 9)), roll(parts, moves, end_at=(3, 9)))
    assert torch.equal(whole.reset(8)["policy"], parts.reset(8)["policy"])
    everywhere = zip(whole.physics.world_fields().items(), parts.physics.world_fields().items(), strict=True)
    for (name, ours), (_, theirs) in everywhere:
        assert torch.equal(ours, theirs), name


@pytest.mark.slow
def test_compiled_worlds_are_their_own():
    """The first of nineteen does what it does alone, after a reset, and continued by another env."""
    alone, crowd, other = (make(n, seed=3, compiled=True, **ENV_KNOBS) for n in (1, 19, 19))
    moves = moves_of(crowd, 30)
    for _ in range(2):
        played = roll(crowd, moves[:20], end_at=(5, 17))
        assert torch.equal(played[:, :1], roll(alone, moves[:20, :1]))
        other.load_state_dict({name: value.clone() for name, value in crowd.state_dict().items()})
        assert torch.equal(roll(crowd, moves[20:], end_at=(2,)), roll(other, moves[20:], end_at=(2,)))
        crowd.reset(3), alone.reset(3)


def test_nothing_asked_for_changes_nothing():
    plain, with_ones = (
        make(history=1, **knobs)
        for knobs in ({}, {"mass": Draw(low=1.0, high=1.0), "gravity": Draw(low=1, high=1)})
    )
    moves = moves_of(plain, 20)
    torch.testing.assert_close(roll(plain, moves), roll(with_ones, moves), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("delay", [1, 3])
def test_a_delayed_action_is_the_one_of_so_many_steps_ago(delay):
    late, prompt = make(action_delay=Delay(delay, delay)), make()
    moves = moves_of(late, 12)
    shifted = torch.cat((torch.zeros_like(moves[:delay]), moves[:-delay]))
    for action, earlier in zip(moves, shifted, strict=True):
        late.step(action), prompt.step(earlier)
        assert torch.equal(late.physics.state.qpos, prompt.physics.state.qpos)


def test_every_delay_is_as_likely():
    env = make(num_envs=3000, task="cartpole_balance", action_delay=Delay(1, 3))
    counts = torch.bincount(env._randomizer._delay, minlength=5)
    assert counts[0] == counts[4] == 0
    assert scipy.stats.chisquare(counts[1:4].numpy()).pvalue > 1e-3


@pytest.mark.parametrize("shape", SHAPES)
def test_noise_is_distributed_as_stated_and_the_critic_sees_the_truth(shape):
    draw, stated = SHAPES[shape]
    noisy, quiet = (
        make(num_envs=64, task="go1_velocity", history=1, **knobs)
        for knobs in ({"observation_noise": draw}, {})
    )
    still = torch.zeros(64, noisy.spec.action_dim)
    for obs, truth in ((noisy.obs, quiet.obs), (noisy.step(still).obs, quiet.step(still).obs)):
        assert torch.equal(obs["critic"], truth["critic"])
        scale = noise_scale(noisy.task.observation_groups["policy"], CPU)
        noise = (obs["policy"] - truth["policy"]).double()
        assert not noise[:, scale == 0].any()
        assert (scale == 0).sum() == 3 + 12  # the command and the last action are no measurements
        numbers = (noise / scale)[:, scale > 0].flatten().numpy()
        assert scipy.stats.kstest(numbers, stated.cdf).pvalue > 1e-3


def test_history_is_the_last_observations_oldest_first():
    env, short = (
        make(history=h, task="go1_velocity", observation_noise=Draw(low=-1, high=1)) for h in (3, 1)
    )
    width = short.spec.obs_dims["policy"]
    assert env.spec.obs_dims["policy"] == 3 * width
    past = [short.obs["policy"].clone()] * 3
    assert torch.equal(env.obs["policy"], torch.cat(past, -1))
    for step, action in enumerate(moves_of(env, 8)):
        for one in (env, short):
            if step == 4:
                one._episode_step[1] = one.spec.max_episode_steps
        result, reference = env.step(action), short.step(action)
        past = [*past[1:], reference.final_obs["policy"].clone()]
        assert torch.equal(result.final_obs["policy"], torch.cat(past, -1))
        done = (reference.terminated | reference.truncated)[:, None]
        assert done[1] == (step == 4)
        past = [torch.where(done, reference.obs["policy"], old) for old in past]
        assert torch.equal(result.obs["policy"], torch.cat(past, -1))


def test_the_start_is_off_by_what_was_stated():
    knobs = {
        "initial_velocity": Draw(low=0.5, high=1.5),
        "initial_position": Draw(low=0.2, high=0.4, names="hip*"),
    }
    moved, plain = (make(num_envs=500, **k) for k in (knobs, {}))
    for view, stated in (
        ((moved.physics.state.qvel - plain.physics.state.qvel).flatten(), scipy.stats.uniform(0.5, 1.0)),
        (
            (moved.physics.state.qpos - plain.physics.state.qpos)[:, 7::2].flatten(),
            scipy.stats.uniform(0.2, 0.2),
        ),
    ):
        assert scipy.stats.kstest(view.numpy(), stated.cdf).pvalue > 1e-3
    others = (moved.physics.state.qpos - plain.physics.state.qpos)[:, [0, 1, 2, 8, 10, 12, 14]]
    assert not others.any()


def test_pushes_come_as_often_as_stated_and_hit_the_base():
    pushed, calm = (
        make(num_envs=150, **k)
        for k in ({"pushes": Draw(low=1.0, high=2.0, per="interval", interval_s=0.2)}, {})
    )
    pushes = []
    push = pushed.physics.push
    pushed.physics.push = lambda worlds, change: (pushes.append(change.clone()), push(worlds, change))
    for action in torch.zeros(20, 150, 8):
        pushed.step(action), calm.step(action)
    change = torch.cat(pushes)
    change = change[change.any(-1)]  # of worlds that begin an episode it is zero
    chance = pushed.task.control_dt / 0.2
    assert scipy.stats.binomtest(len(change), 20 * 150, chance).pvalue > 1e-3
    assert not change[:, 6:].any()
    assert scipy.stats.kstest(change[:, :6].flatten().numpy(), scipy.stats.uniform(1, 1).cdf).pvalue > 1e-3
    assert not torch.equal(pushed.physics.state.qvel, calm.physics.state.qvel)


def test_interval_knobs_change_within_the_episode_and_others_do_not():
    env = make(num_envs=50, mass=ENV_KNOBS["mass"], gravity=ENV_KNOBS["gravity"])
    before = env.physics.state_dict()
    env.step(torch.zeros(50, 8))
    changed = {
        name: (env.physics.state_dict()[f"model.{name}"] != before[f"model.{name}"]).flatten(1).any(-1)
        for name in ("body_mass", "opt.gravity")
    }
    assert 0 < changed["body_mass"].sum() < 25
    assert not changed["opt.gravity"].any()


@pytest.mark.slow
def test_compiled_equals_eager():
    eager, compiled = (make(compiled=flag, **ENV_KNOBS) for flag in (False, True))
    moves = moves_of(eager, 20)
    torch.testing.assert_close(roll(eager, moves), roll(compiled, moves), rtol=1e-4, atol=1e-4)
