"""Robot models, by name, from the packages that maintain them."""

from __future__ import annotations

from pathlib import Path

import gymnasium
import mujoco


def gymnasium_model(name: str) -> mujoco.MjSpec:
    """The MJCF of one of Gymnasium's MuJoCo environments, every geom and body named.

    Raises:
        FileNotFoundError: Gymnasium ships no such model.
    """
    path = Path(gymnasium.__file__).parent / "envs" / "mujoco" / "assets" / f"{name}.xml"
    if not path.is_file():
        raise FileNotFoundError(f"gymnasium ships no model {name!r}: {path} does not exist")
    spec = mujoco.MjSpec.from_file(str(path))
    for kind in ("body", "geom"):
        for number, element in enumerate(spec.worldbody.find_all(kind)):
            element.name = element.name or f"{kind}_{number}"
    return spec
