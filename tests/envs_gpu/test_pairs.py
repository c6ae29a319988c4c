"""Which geoms can meet, against the pairs that MuJoCo Warp works out by itself."""

import mujoco
import mujoco_warp
import numpy as np
import pytest

from envs_gpu.physics import _pairs

FILTERED = """
<mujoco><option><flag filterparent="{filterparent}"/></option>
<worldbody><geom name="ground" type="plane" size="1 1 1"/>
 <geom name="wall" type="box" size=".1 .1 .1" pos="1 0 0"/>
 <body name="a" pos="0 0 1"><freejoint/><geom size=".1"/><geom type="capsule" size=".02 .1" contype="2"/>
  <body name="welded" pos="0 0 .1"><geom type="cylinder" size=".1 .1"/>
   <body name="b" pos="0 0 .2"><joint/><geom type="mesh" mesh="m"/>
    <body name="c" pos="0 0 .2"><joint/><geom type="ellipsoid" size=".1 .1 .2" conaffinity="3"/></body>
   </body></body></body>
 <body name="d" pos="1 0 1"><joint/><geom name="d" size=".1" contype="0" conaffinity="0"/></body></worldbody>
<contact><exclude body1="c" body2="a"/><pair geom1="ground" geom2="d"/></contact></mujoco>""".replace(
    "<worldbody>", '<asset><mesh name="m" vertex="0 0 0 .1 0 0 0 .1 0 0 0 .1"/></asset><worldbody>', 1
)


@pytest.mark.parametrize("filterparent", ["enable", "disable"])
def test_pairs_are_those_of_mujoco_warp(filterparent):
    model = mujoco.MjModel.from_xml_string(FILTERED.format(filterparent=filterparent))
    ours = {tuple(sorted(pair)) for pair in _pairs.colliding(model).tolist()}
    theirs = mujoco_warp.put_model(model).nxn_geom_pair_filtered.numpy()
    assert ours == {tuple(sorted(pair)) for pair in theirs.tolist()}


GEOMS = {
    "plane": 'type="plane" size="1 1 1"',
    "hfield": 'type="hfield" hfield="h"',
    "sphere": 'type="sphere" size=".1"',
    "capsule": 'type="capsule" size=".06 .1"',
    "ellipsoid": 'type="ellipsoid" size=".1 .12 .08"',
    "cylinder": 'type="cylinder" size=".1 .06"',
    "box": 'type="box" size=".1 .08 .06"',
    "mesh": 'type="mesh" mesh="m"',
}
TWO = """
<mujoco><option><flag {flag}/></option><asset><mesh name="m" vertex="-.1 -.08 -.06 .1 -.08 -.06 -.1 .08 -.06
.1 .08 -.06 -.1 -.08 .06 .1 -.08 .06 -.1 .08 .06"/><hfield name="h" nrow="3" ncol="3" size="1 1 .1 .1"
elevation="0 0 0 0 1 0 0 0 0"/></asset><worldbody><geom {a}/><body><freejoint/><geom {b} mass="1"/></body>
</worldbody></mujoco>"""


def ends(mjcf):
    """`[S, 6]` velocities of a body that touches another one, a timestep of C after each of some states."""
    model = mujoco.MjModel.from_xml_string(mjcf)
    data, generator = mujoco.MjData(model), np.random.default_rng(0)
    found = []
    for state in range(60):
        mujoco.mj_resetData(model, data)
        turn = generator.normal(size=4) if state % 2 else np.array([1, state % 4 / 2, 0, 0])
        data.qpos[:3] = np.array([0, 0, 0.13]) + generator.uniform(-0.04, 0.04, 3)
        data.qpos[3:] = turn / np.linalg.norm(turn)
        mujoco.mj_step(model, data)
        found.append(data.qvel.copy())
    return np.array(found)


@pytest.mark.parametrize(("flag", "types"), [("nativeccd", _pairs.CONVEX), ("multiccd", _pairs.MANY_POINTS)])
def test_a_flag_concerns_the_pairs_that_c_collides_otherwise_without_it(flag, types):
    names = list(GEOMS)
    for number, first in enumerate(names):
        for second in names[max(number, 2) :]:
            with_it, without = (
                ends(TWO.format(flag=text, a=GEOMS[first], b=GEOMS[second]))
                for text in ("", f'{flag}="disable"')
            )
            kinds = (getattr(mujoco.mjtGeom, f"mjGEOM_{name.upper()}") for name in (first, second))
            concerned = frozenset(map(int, kinds)) in types
            assert (np.abs(with_it - without).max() > 1e-5) == concerned, (first, second)
