"""What Newton's importer loses of a scene, given back; and what cannot be given back, refused.

Newton 1.8 reads MJCF with a parser of its own and compiles what it has read for MuJoCo. On the way it takes
other defaults than MuJoCo (`solref="0.01"` arrives as `0.01 0`), replaces or drops fields that it does not
model (gravity, wind, margins, ranges), rounds to float32, and may change the order of bodies, geoms and
joints. `restored` compares its compiled model with the scene's, field by field:

- the structure (numbers of elements, tree, types, what may collide, the shapes of meshes) has to be equal, or
  the scene is refused with the field that differs;
- every number becomes the scene's, so that rows of the scene's fields are rows of the imported model's too.
"""

from __future__ import annotations

import copy

import mujoco
import mujoco_warp as mjw
import numpy as np

from envs_gpu.physics.base import UnsupportedModelError

_SIZES = (
    *("nq", "nv", "nu", "na", "nactuator", "nbody", "njnt", "ntree", "nsite", "ntendon", "neq", "npair"),
    *("nhfield", "nhfielddata", "nflex", "nplugin", "ngravcomp", "nhistory", "nJmom"),
)
_STRUCTURE = ("body_parentid", "body_jntnum", "jnt_type", "jnt_bodyid", "dof_bodyid", "site_bodyid")
"""Where these differ, Newton has built another tree: rows of one model are not rows of the other."""
_TENDONS = ("nwrap", "nJten")
_KINDS = ("body", "jnt", "dof", "site", "tendon", "actuator", "eq", "hfield", "wrap", "pair")
_OWN = (
    *("body_geomadr", "body_geomnum", "body_bvhadr", "body_bvhnum", "body_user", "body_simple", "jnt_user"),
    *("body_mocapid", "dof_Madr", "dof_simplenum", "site_user", "site_matid", "tendon_user", "tendon_matid"),
    *("geom_bodyid", "geom_dataid", "geom_matid", "geom_user", "geom_plugin", "actuator_user"),
    "hfield_pathadr",
)
"""How the imported model is laid out, which stays its own; the rest is for pictures."""
_FRAME = ("geom_pos", "geom_quat", "geom_size", "geom_aabb", "geom_rbound", "geom_sameframe")
"""They belong to a mesh's own vertices."""
_MESH = int(mujoco.mjtGeom.mjGEOM_MESH)
_TOLERANCE = 1e-5
"""How far the hulls of two meshes may be apart, as a share of their size; Newton's have float32 vertices."""


def restored(scene: mujoco.MjModel, imported: mujoco.MjModel) -> tuple[mujoco.MjModel, np.ndarray]:
    """A copy of `imported` that moves as `scene` does, and `[ngeom]` the scene's number of each of its geoms.

    Raises:
        UnsupportedModelError: Newton has made something else of the scene; the message names what.
    """
    own = copy.copy(imported)
    acts = _tendons_act(scene)
    for name in (*_SIZES, *(_TENDONS if acts else ())):
        if (ours := getattr(scene, name)) != (theirs := getattr(own, name)):
            raise _refusal(f"makes {name} = {theirs} of a scene with {name} = {ours}")
    for name in _STRUCTURE:
        if not np.array_equal(getattr(scene, name), getattr(own, name)):
            raise _refusal(f"orders the scene otherwise ({name})")
    geoms = _scene_geoms(scene, own)
    _check_meshes(scene, own, geoms)
    for name in _fields(scene):
        if not acts and name.startswith(("tendon_", "wrap_")):
            continue
        _restore(scene, own, name, geoms)
    _restore_excludes(scene, own)
    own.flg_adhesion, own.flg_surfacevel = scene.flg_adhesion, scene.flg_surfacevel
    for name in ("opt", "stat"):
        _copy_struct(getattr(scene, name), getattr(own, name))
    return own, geoms


def _tendons_act(scene: mujoco.MjModel) -> bool:
    """Whether a tendon exerts a force; Newton loses parts of some that do not."""
    fields = ("limited", "stiffness", "damping", "frictionloss", "armature")
    passive = any(getattr(scene, f"tendon_{field}").any() for field in fields)
    pulled = (scene.actuator_trntype == mujoco.mjtTrn.mjTRN_TENDON).any()
    coupled = (scene.eq_type == mujoco.mjtEq.mjEQ_TENDON).any()
    return bool(passive or pulled or coupled)


def _fields(scene: mujoco.MjModel) -> list[str]:
    names = [name for name in dir(scene) if name.partition("_")[0] in (*_KINDS, "geom") and "_" in name]
    return [name for name in (*names, "qpos0", "qpos_spring", "tree_sleep_policy") if name not in _OWN]


def _restore(scene: mujoco.MjModel, own: mujoco.MjModel, name: str, geoms: np.ndarray) -> None:
    theirs, ours = getattr(own, name), getattr(scene, name)
    if name.startswith("geom_"):
        ours = ours[geoms]
        if name in _FRAME:
            keep = own.geom_type == _MESH
            ours = np.where(keep.reshape(-1, *[1] * (ours.ndim - 1)), theirs, ours)
    elif name in ("pair_geom1", "pair_geom2", "wrap_objid"):
        ours = _in_imported(scene, name, geoms)
    if ours.shape != theirs.shape:
        raise _refusal(f"makes {name} of shape {theirs.shape} of a scene where it is {ours.shape}")
    theirs[:] = ours


def _restore_excludes(scene: mujoco.MjModel, own: mujoco.MjModel) -> None:
    """Newton excludes parents and bodies in a loop too; where the scene has more, `check_pairs` sees it."""
    if scene.nexclude <= own.nexclude:
        own.exclude_signature[:] = 0  # the world and itself
        own.exclude_signature[: scene.nexclude] = scene.exclude_signature


def _in_imported(scene: mujoco.MjModel, name: str, geoms: np.ndarray) -> np.ndarray:
    """Numbers of geoms in the scene as numbers in the imported model."""
    numbers = getattr(scene, name).copy()
    place = {int(geom): index for index, geom in enumerate(geoms)}
    wraps = (mujoco.mjtWrap.mjWRAP_SPHERE, mujoco.mjtWrap.mjWRAP_CYLINDER)
    mine = np.isin(scene.wrap_type, wraps) if name == "wrap_objid" else np.ones(len(numbers), bool)
    numbers[mine] = [place[int(geom)] for geom in numbers[mine]]
    return numbers


def _copy_struct(ours: object, theirs: object) -> None:
    for name in dir(ours):
        value = getattr(ours, name)
        if name.startswith("_") or callable(value):
            continue
        if isinstance(value, np.ndarray):
            getattr(theirs, name)[:] = value
        else:
            setattr(theirs, name, value)


def _scene_geoms(scene: mujoco.MjModel, own: mujoco.MjModel) -> np.ndarray:
    """`[ngeom]` number in the scene of each imported geom; those for pictures alone may be missing.

    Raises:
        UnsupportedModelError: a geom has no partner.
    """
    free = list(range(scene.ngeom))
    found = np.zeros(own.ngeom, dtype=np.int64)
    for index in range(own.ngeom):
        alike = [geom for geom in free if _are_alike(scene, geom, own, index)]
        if not alike:
            raise _refusal(f"has a geom {own.geom(index).name!r}, which the scene does not have")
        found[index] = min(alike, key=lambda geom: (_distance(scene, geom, own, index), geom))
        free.remove(found[index])
    matters = (scene.geom_contype | scene.geom_conaffinity) != 0
    matters |= scene.geom_fluid[:, 0] > 0
    matters[scene.pair_geom1] = matters[scene.pair_geom2] = True
    wraps = np.isin(scene.wrap_type, (mujoco.mjtWrap.mjWRAP_SPHERE, mujoco.mjtWrap.mjWRAP_CYLINDER))
    matters[scene.wrap_objid[wraps]] = True
    for geom in free:
        if matters[geom]:
            raise _refusal(f"loses geom {scene.geom(geom).name or geom!r}")
    return found


def _are_alike(scene: mujoco.MjModel, geom: int, own: mujoco.MjModel, index: int) -> bool:
    """Both are of one body and type, and either collide or do not; a name of the scene's is kept."""
    return bool(
        scene.geom_bodyid[geom] == own.geom_bodyid[index]
        and scene.geom_type[geom] == own.geom_type[index]
        and _keeps_name(scene.geom(geom).name, own.geom(index).name)
    )


def _keeps_name(name: str, imported: str) -> bool:
    """Whether the last part of Newton's name of a geom, `MODEL/worldbody/BODY/NAME_NUMBER`, is `name`."""
    label = imported.rpartition("_")[0]
    return not name or label == name or label.endswith(f"/{name}")


def _distance(scene: mujoco.MjModel, geom: int, own: mujoco.MjModel, index: int) -> float:
    """How different two geoms of one type are, to tell those of a body apart."""
    differences = [
        np.abs(getattr(scene, name)[geom] - getattr(own, name)[index]).max()
        for name in ("geom_pos", "geom_size")
        if name == "geom_pos" or scene.geom_type[geom] not in (_MESH, mujoco.mjtGeom.mjGEOM_PLANE)
    ]
    collides = [
        bool(model.geom_contype[number] | model.geom_conaffinity[number])
        for model, number in ((scene, geom), (own, index))
    ]
    return float(sum(differences)) + 1e3 * (collides[0] != collides[1])


def _check_meshes(scene: mujoco.MjModel, own: mujoco.MjModel, geoms: np.ndarray) -> None:
    """Check that meshes that can collide have the scene's hull, in their body's frame."""
    directions = np.random.default_rng(0).normal(size=(64, 3))
    for index in np.flatnonzero(own.geom_type == _MESH):
        geom = int(geoms[index])
        if not (scene.geom_contype[geom] | scene.geom_conaffinity[geom]):
            continue
        ours, theirs = (_extent(scene, geom, directions), _extent(own, int(index), directions))
        if np.abs(ours - theirs).max() > _TOLERANCE * max(1.0, float(np.abs(ours).max())):
            raise _refusal(f"gives geom {scene.geom(geom).name or geom!r} another mesh")


def _extent(model: mujoco.MjModel, geom: int, directions: np.ndarray) -> np.ndarray:
    """How far a mesh reaches from its body's origin in `directions` `[D, 3]`; `[D]`, m times their length."""
    mesh = model.geom_dataid[geom]
    first, number = model.mesh_vertadr[mesh], model.mesh_vertnum[mesh]
    turn = np.zeros(9)
    mujoco.mju_quat2Mat(turn, model.geom_quat[geom])
    vertices = model.mesh_vert[first : first + number] @ turn.reshape(3, 3).T + model.geom_pos[geom]
    extent: np.ndarray = (directions @ vertices.T).max(1)
    return extent


def check_pairs(scene: mujoco.MjModel, geoms: np.ndarray, ours: mjw.Model, theirs: mjw.Model) -> None:
    """Check that the same geoms can collide.

    Args:
        scene: the scene.
        geoms: `[ngeom]` number in the scene of each imported geom.
        ours: MuJoCo Warp's model of the scene.
        theirs: of the imported scene.

    Raises:
        UnsupportedModelError: they cannot; the message names two that differ.
    """
    expected = {tuple(sorted(pair)) for pair in _colliding(ours).tolist()}
    found = {tuple(sorted(pair)) for pair in geoms[_colliding(theirs)].tolist()}
    if expected != found:
        pair = min(expected ^ found)
        names = " and ".join(repr(scene.geom(geom).name or geom) for geom in pair)
        raise _refusal(f"{'does not let' if pair in expected else 'lets'} geoms {names} collide")


def _colliding(model: mjw.Model) -> np.ndarray:
    """`[P, 2]` the pairs of geoms that can touch; others are there for the sensors of distances."""
    touches = model.nxn_pairid_filtered.numpy()[:, 0] > -2
    pairs: np.ndarray = model.nxn_geom_pair_filtered.numpy()[touches]
    return pairs


def _refusal(problem: str) -> UnsupportedModelError:
    return UnsupportedModelError(f"newton {problem}; env.backend=warp runs it")
