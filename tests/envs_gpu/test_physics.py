"""What every physics backend promises, on a small scene with contacts, an activation and sensors."""

import jax
import mujoco
import numpy as np
import pytest
import torch
from mujoco import mjx
from mujoco.mjx._src import collision_driver

from envs_gpu.physics import BACKENDS, _capacity
from envs_gpu.physics._capsule_frame import correct_mjx
from envs_gpu.physics.base import PhysicsOptions
from envs_gpu.tasks import TASKS

CPU = torch.device("cpu")
N, SUBSTEPS = 8, 2

# A capsule that can fall over, with an arm that ends in a ball; one motor acts at once, the other with a lag.
SCENE = """
<mujoco>
  <option timestep="0.004"/>
  <worldbody>
    <geom name="floor" type="plane" size="5 5 1"/>
    <body name="trunk" pos="0 0 0.45">
      <freejoint/>
      <geom name="trunk" type="capsule" size="0.08" fromto="0 0 -0.3 0.1 0 0.3" mass="2"/>
      <site name="trunk"/>
      <body name="arm" pos="0.1 0 0.3">
        <joint name="shoulder" axis="0 1 0" damping="0.1" limited="true" range="-120 120"/>
        <geom name="arm" type="capsule" size="0.03" fromto="0 0 0 0.3 0 0" mass="0.3"/>
        <body name="hand" pos="0.3 0 0">
          <joint name="elbow" axis="0 0 1" damping="0.1"/>
          <geom name="hand" type="sphere" size="0.06" pos="0.1 0 0" mass="0.2"/>
        </body>
      </body>
    </body>
  </worldbody>
  <contact><exclude body1="trunk" body2="hand"/><exclude body1="trunk" body2="arm"/></contact>
  <actuator>
    <motor name="shoulder" joint="shoulder" gear="3"/>
    <general name="elbow" joint="elbow" gear="2" dyntype="filter" dynprm="0.05"/>
  </actuator>
  <sensor>
    <contact name="trunk_floor" geom1="trunk" geom2="floor" num="2" reduce="mindist"
     data="force pos normal tangent"/>
    <contact name="hand_floor" geom1="hand" geom2="floor" num="1" reduce="mindist" data="force pos"/>
    <gyro name="gyro" site="trunk"/>
    <framelinvel name="hand_velocity" objtype="body" objname="hand"/>
    <subtreecom name="com" body="trunk"/>
    <jointpos name="elbow" joint="elbow"/>
  </sensor>
</mujoco>
"""
# Two bodies, one of them on the floor: XLA compiles it in a fraction of the time.
SMALL_SCENE = """
<mujoco>
  <option timestep="0.004"/>
  <worldbody>
    <geom name="floor" type="plane" size="5 5 1"/>
    <body name="ball" pos="0 0 0.1">
      <joint name="height" type="slide" axis="0 0 1"/>
      <joint name="roll" type="hinge" axis="0 1 0" damping="0.1"/>
      <geom name="ball" type="sphere" size="0.1" mass="1"/>
      <body name="arm" pos="0 0 0.1">
        <joint name="arm" axis="0 1 0" damping="0.1"/>
        <geom name="arm" type="capsule" size="0.03" fromto="0 0 0.1 0.2 0 0.1" mass="0.3"/>
      </body>
    </body>
  </worldbody>
  <contact><exclude body1="ball" body2="arm"/></contact>
  <actuator><motor name="arm" joint="arm" gear="1"/></actuator>
</mujoco>
"""
ENGINES = ["mujoco", "warp", "newton", "mjx", pytest.param("mjx-warp", marks=pytest.mark.slow)]
every_engine = pytest.mark.parametrize("engine", ENGINES)
SLOW_MJX = pytest.param("mjx", marks=pytest.mark.slow)
every_engine_but_mjx = pytest.mark.parametrize(
    "engine", [SLOW_MJX if engine == "mjx" else engine for engine in ENGINES]
)
"""For tests for which MJX compiles the scene once more."""


@pytest.fixture(scope="module")
def model():
    return mujoco.MjModel.from_xml_string(SCENE)


def build(engine, model, num_worlds=N, per_world=()):
    name, _, impl = engine.partition("-")
    options = PhysicsOptions(mjx_impl=impl or "jax", mjcf=SCENE, per_world=per_world)
    return BACKENDS.get(name)(model, num_worlds, CPU, options)


def start(model, num_worlds=N, seed=0):
    """Positions and velocities `[N, ...]` around the model's own: leaning, and falling."""
    generator = torch.Generator().manual_seed(seed)
    qpos = torch.tensor(model.qpos0) + 0.2 * torch.randn(num_worlds, model.nq, generator=generator)
    return qpos, 0.5 * torch.randn(num_worlds, model.nv, generator=generator)


def controls(model, num_steps, num_worlds=N, seed=1):
    return 2 * torch.rand(num_steps, num_worlds, model.nu, generator=torch.Generator().manual_seed(seed)) - 1


def restart(physics, mask=None, seed=0):
    mask = torch.ones(physics.num_worlds, dtype=torch.bool) if mask is None else mask
    physics.set_state(mask, *start(physics.model, physics.num_worlds, seed))


def play(physics, ctrl):
    for row in ctrl:
        physics.step(row, SUBSTEPS)
    return {name: view.clone() for name, view in physics.state._asdict().items()}


def assert_same_bits(one, other, rows=slice(None)):
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(
            one[name][rows], other[name][rows], rtol=0, atol=0, msg=name, equal_nan=True
        )


@every_engine_but_mjx
def test_a_restart_touches_no_other_world(engine, model):
    undisturbed, physics = build(engine, model), build(engine, model)
    mask = torch.arange(N) % 3 == 1
    ctrl = controls(model, 60)
    for one in (undisturbed, physics):
        restart(one)
        play(one, ctrl[:30])
    restart(physics, mask, seed=5)
    assert_same_bits(physics.state_dict(), undisturbed.state_dict(), ~mask)
    qpos, qvel = start(model, seed=5)
    assert torch.equal(physics.state.qpos[mask], qpos[mask].to(physics.state.qpos.dtype))
    assert torch.equal(physics.state.qvel[mask], qvel[mask].to(physics.state.qvel.dtype))
    for name in ("time", "act", "ctrl"):
        assert not getattr(physics.state, name)[mask].any(), name
    # What cannot be seen, the solver's warm start, shows in what comes next.
    assert_same_bits(play(physics, ctrl[30:]), play(undisturbed, ctrl[30:]), ~mask)


@every_engine
def test_a_restarted_world_forgets_its_past(engine, model):
    new, used = build(engine, model), build(engine, model)
    play(used, controls(model, 10, seed=3))
    for physics in (new, used):
        restart(physics)
    assert_same_bits(play(new, controls(model, 20)), play(used, controls(model, 20)))


@every_engine
def test_sensors_belong_to_the_returned_state(engine, model):
    physics = build(engine, model)
    restart(physics)
    trunk, hand = (model.sensor(name).adr[0] for name in ("trunk_floor", "hand_floor"))
    atol = np.full(model.nsensordata, 1e-5)  # float32, of numbers up to 30
    # Forces come from an iterative solver that stops at 1e-6 in float32 and at 1e-8 in C: 2e-4 of the weight.
    for force in (trunk, trunk + 12, hand):
        atol[force : force + 3] = 5e-3
    num_contacts = 0
    for row in controls(model, 40):
        physics.step(row, SUBSTEPS)
        for world in range(N):
            data = mujoco.MjData(model)
            for name in ("qpos", "qvel", "act", "ctrl"):
                getattr(data, name)[:] = getattr(physics.state, name)[world].double()
            mujoco.mj_forward(model, data)
            num_contacts += data.ncon
            error = np.abs(physics.state.sensordata[world].double().numpy() - data.sensordata)
            assert (error <= atol + 1e-5 * np.abs(data.sensordata)).all(), error
    assert num_contacts > 100


@every_engine
def test_continues_bit_for_bit(engine, model):
    physics, fresh = build(engine, model), build(engine, model)
    ctrl = controls(model, 60)
    restart(physics)
    play(physics, ctrl[:30])
    saved = physics.state_dict()
    expected = play(physics, ctrl[30:])
    for other in (physics, fresh):
        other.load_state_dict(saved)
        assert_same_bits(other.state_dict(), saved)
        assert_same_bits(play(other, ctrl[30:]), expected)


@every_engine
def test_nan_stays_in_its_world_until_the_restart(engine, model):
    healthy, physics = build(engine, model), build(engine, model)
    sick = torch.arange(N) == 3
    for one in (healthy, physics):
        restart(one)
    physics.set_state(sick, torch.full((N, model.nq), torch.nan), torch.zeros(N, model.nv))
    ctrl = controls(model, 40)
    expected, played = play(healthy, ctrl), play(physics, ctrl)
    assert_same_bits(played, expected, ~sick)
    assert played["qpos"][sick].isnan().any()
    assert played["qvel"][sick].isnan().any()
    restart(physics, sick, seed=9)
    assert all(view.isfinite().all() for view in play(physics, ctrl[:5]).values())


@every_engine_but_mjx
def test_a_world_does_not_depend_on_their_number(engine, model):
    assert_the_number_does_not_matter(engine, model)


@pytest.mark.slow
def test_a_world_of_mjx_does_not_depend_on_their_number():
    """The fast sibling of the test above, on a scene that compiles in seconds."""
    model = mujoco.MjModel.from_xml_string(SMALL_SCENE)
    assert_the_number_does_not_matter("mjx", model)


def assert_the_number_does_not_matter(engine, model):
    alone, crowd = build(engine, model, 1), build(engine, model)
    qpos, qvel = start(model)
    alone.set_state(torch.ones(1, dtype=torch.bool), qpos[:1], qvel[:1])
    restart(crowd)
    ctrl = controls(model, 30)
    if engine == "mjx":
        # XLA compiles each N anew and orders sums as suits it: the last bits differ, and grow in contact.
        ours, theirs = play(alone, ctrl[:5, :1]), play(crowd, ctrl[:5])
        torch.testing.assert_close(ours["qpos"], theirs["qpos"][:1], rtol=1e-5, atol=1e-6)
    else:
        ours, theirs = play(alone, ctrl[:, :1]), play(crowd, ctrl)
        assert_same_bits(ours, {name: value[:1] for name, value in theirs.items()})


def test_warp_sums_a_sparse_hessian_in_one_order_for_every_number():
    """MuJoCo Warp itself has another one for each number below four."""
    model = TASKS.get("g1_velocity")().scene().compile()
    home, ctrl = model.key("default"), 0.3 * controls(model, 10)
    ctrl += torch.tensor(home.ctrl).float()
    played = []
    for num_worlds in (1, 2, 3, N):
        physics = build("warp", model, num_worlds)
        qpos, everyone = (
            torch.tensor(home.qpos).repeat(num_worlds, 1),
            torch.ones(num_worlds, dtype=torch.bool),
        )
        physics.set_state(everyone, qpos, torch.zeros(num_worlds, model.nv))
        played.append(play(physics, ctrl[:, :num_worlds]))
    for more in played[1:]:
        assert_same_bits(played[0], {name: value[:1] for name, value in more.items()})


@every_engine
def test_a_world_does_not_depend_on_its_place(engine, model):
    straight, turned = build(engine, model), build(engine, model)
    everybody = torch.ones(N, dtype=torch.bool)
    qpos, qvel = start(model)
    straight.set_state(everybody, qpos, qvel)
    turned.set_state(everybody, qpos.flip(0), qvel.flip(0))
    ctrl = controls(model, 30)
    forth, back = play(straight, ctrl), play(turned, ctrl.flip(1))
    assert_same_bits(forth, {name: value.flip(0) for name, value in back.items()})


@every_engine
def test_time_counts_from_the_restart(engine, model):
    physics = build(engine, model)
    play(physics, controls(model, 3))
    restart(physics, torch.arange(N) < 2)
    physics.step(controls(model, 1)[0], SUBSTEPS)
    dt = SUBSTEPS * model.opt.timestep
    torch.testing.assert_close(
        physics.state.time, (torch.tensor([1.0] * 2 + [4.0] * 6) * dt).to(physics.state.time)
    )


def test_mjx_compiles_once(model):
    compilations = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, duration, **_: compilations.append(event) if "backend_compile" in event else None
    )
    physics = build("mjx", model)
    restart(physics)
    physics.step(controls(model, 1)[0], SUBSTEPS)
    compilations.clear()
    restart(physics, torch.arange(N) < 2)
    physics.step(controls(model, 1)[0], SUBSTEPS)
    physics.step(controls(model, 1)[0].double(), SUBSTEPS + 1)
    physics.load_state_dict(physics.state_dict())
    physics.step(controls(model, 1)[0], SUBSTEPS)
    restart(build("mjx", model))
    assert compilations == []


@pytest.mark.parametrize("engine", [engine for engine in ENGINES if engine not in ("mujoco", "newton")])
def test_overflow_is_reported_per_world(engine, model, monkeypatch):
    physics = build(engine, model)
    restart(physics)
    play(physics, controls(model, 60))
    assert physics.overflow().tolist() == [False] * N
    if engine == "mjx":
        return  # makes room for every contact that the model can have
    module = "envs_gpu.physics." + engine.partition("-")[0]
    monkeypatch.setattr(f"{module}.capacity", lambda *_: _capacity.Capacity(contacts=4, constraints=2))
    cramped = build(engine, model)
    restart(cramped)
    play(cramped, controls(model, 60))
    assert cramped.overflow().any()


def test_capacity_of_ant_is_every_contact_it_can_have():
    model = TASKS.get("ant")().scene().compile()
    floor = model.geom("floor").id
    pairs = np.array([(floor, geom) for geom in range(model.ngeom) if geom != floor])
    # 12 capsules touch the floor with both ends and the torso once; 4 pyramid edges each; 8 joint limits.
    assert _capacity.capacity(model, pairs) == (25, 25 * 4 + 8)


def test_capacity_of_a_heap_is_bounded():
    boxes = "".join(
        f'<body pos="0 0 {i}"><freejoint/><geom type="box" size=".1 .1 .1"/></body>' for i in range(60)
    )
    model = mujoco.MjModel.from_xml_string(f"<mujoco><worldbody>{boxes}</worldbody></mujoco>")
    pairs = np.array([(a, b) for a in range(60) for b in range(a)])
    assert _capacity.capacity(model, pairs).contacts == 240


@pytest.mark.parametrize("degrees", [10, 45, 65, 80, 89])
def test_friction_follows_the_capsule_as_in_c(degrees):
    """The tangent that the uncorrected engines replace by a world axis above 60 degrees."""
    tilt = f'axisangle="0.3 1 0 {90 - degrees}"'
    model = mujoco.MjModel.from_xml_string(f"""
        <mujoco><worldbody>
          <geom name="floor" type="plane" size="5 5 1"/>
          <body pos="0 0 {0.2 * np.sin(np.radians(degrees)) + 0.09}"><freejoint/>
            <geom name="leg" type="capsule" size="0.1 0.2" {tilt}/></body>
        </worldbody>
        <sensor><contact geom1="leg" geom2="floor" reduce="mindist" data="tangent"/></sensor></mujoco>""")
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    assert data.ncon
    physics = build("warp", model, 1)
    tangent = physics.state.sensordata[0].double().numpy()
    np.testing.assert_allclose(tangent, data.sensordata, atol=1e-5)


def test_mjx_still_needs_the_capsule_correction():
    """Fails when MJX has C's frame itself: then `_capsule_frame` can go."""
    model = TASKS.get("ant")().scene().compile()
    BACKENDS.get("mjx")
    correct_mjx(collision_driver)
    data = mujoco.MjData(model)
    data.qpos[2] = 0.4
    data.qpos[8::2] = 1.5  # the ankles point straight down, almost
    mujoco.mj_forward(model, data)
    mjx_model, mjx_data = mjx.put_model(model), mjx.put_data(model, data)
    pair = (collision_driver.GeomType.PLANE, collision_driver.GeomType.CAPSULE)
    ankle = model.geom("left_ankle_geom").id
    corrected = collision_driver._COLLISION_FUNC[pair]
    frames = {
        name: np.asarray(
            function(mjx_model, mjx_data, None, np.array([[model.geom("floor").id, ankle]]))[2][0]
        )
        for name, function in {"corrected": corrected, "original": corrected.__wrapped__}.items()
    }
    along = data.geom_xmat[ankle].reshape(3, 3)[:, 2] * [1, 1, 0]
    np.testing.assert_allclose(frames["corrected"][1], along / np.linalg.norm(along), atol=1e-5)
    assert not np.allclose(frames["original"][1], frames["corrected"][1], atol=0.1)


@pytest.mark.parametrize("num_restarted", [1, 16, 17, 128, 129])
def test_a_few_worlds_restart_as_among_all(num_restarted, model, monkeypatch):
    """On a CPU Warp evaluates few restarted worlds in a small batch: the same bits, now and later."""
    num_worlds = 150
    ctrl = controls(model, 20, num_worlds)
    mask = torch.zeros(num_worlds, dtype=torch.bool)
    mask[torch.randperm(num_worlds, generator=torch.Generator().manual_seed(2))[:num_restarted]] = True
    among_all, aside = (build("warp", model, num_worlds, ("body_mass",)) for _ in range(2))
    # Masses of their own, which the contact forces of those that restart have to know.
    scale = 1 + torch.rand(num_worlds, 1, generator=torch.Generator().manual_seed(3))
    mass = scale * torch.tensor(model.body_mass)
    for physics in (among_all, aside):
        monkeypatch.setattr("envs_gpu.physics.warp._FEW", () if physics is among_all else (16, 128))
        restart(physics)
        play(physics, ctrl[:10])
        physics.randomize("body_mass", mass, torch.ones(num_worlds, dtype=torch.bool))
        restart(physics, mask, seed=5)
    assert bool(aside._side_batches) == (num_restarted <= 128)
    assert_same_bits(aside.state_dict(), among_all.state_dict())
    assert aside.state.sensordata[mask].any()
    assert_same_bits(play(aside, ctrl[10:]), play(among_all, ctrl[10:]))
