"""What a scene needs only to be looked at."""

from __future__ import annotations

import mujoco

TILES = "tiles"
"""The floor's material, for grounds of other shapes."""


def add_stage(spec: mujoco.MjSpec, floor_z_m: float) -> None:
    """Add a sky, a light and a chequered floor that touches nothing."""
    add_light_and_sky(spec)
    spec.worldbody.add_geom(
        name="stage_floor",
        type=mujoco.mjtGeom.mjGEOM_PLANE,
        pos=(0, 0, floor_z_m),
        size=(10, 10, 0.1),
        material=TILES,
        contype=0,
        conaffinity=0,
    )


def add_light_and_sky(spec: mujoco.MjSpec) -> None:
    """Add a sky, the material `TILES`, for a scene with a ground of its own, and the only light there is."""
    for lamp in spec.lights:  # what a robot brings along would burn out the ground below it
        spec.delete(lamp)
    texture, builtin = mujoco.mjtTexture, mujoco.mjtBuiltin
    sky = spec.add_texture(name="sky", type=texture.mjTEXTURE_SKYBOX, builtin=builtin.mjBUILTIN_GRADIENT)
    sky.rgb1, sky.rgb2, sky.width, sky.height = (0.6, 0.75, 0.9), (0.95, 0.97, 1.0), 256, 256
    tiles = spec.add_texture(name=TILES, type=texture.mjTEXTURE_2D, builtin=builtin.mjBUILTIN_CHECKER)
    tiles.rgb1, tiles.rgb2, tiles.width, tiles.height = (0.78, 0.8, 0.83), (0.7, 0.73, 0.76), 256, 256
    material = spec.add_material(name=TILES, texrepeat=(8, 8))
    material.textures[mujoco.mjtTextureRole.mjTEXROLE_RGB] = TILES
    sun = mujoco.mjtLightType.mjLIGHT_DIRECTIONAL
    spec.worldbody.add_light(type=sun, pos=(0, -2, 4), dir=(0.2, 0.6, -1.5), diffuse=(0.8, 0.8, 0.8))
