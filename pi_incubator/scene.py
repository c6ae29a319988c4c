"""The compiled scene of a run: hashed when the run begins, and compared when it is continued or judged.

`<run>/scene.json` has a hash for each field of MuJoCo's model. It also finds what `inputs.json` cannot: other
versions of a package that a robot comes from, of a task's code, or of MuJoCo's compiler.
"""

from __future__ import annotations

import json
from importlib.metadata import version
from typing import TYPE_CHECKING

from pi_incubator.errors import UserError
from pi_incubator.run_paths import RunFolder

if TYPE_CHECKING:
    from envs_gpu.vec_env import VecEnv

FORMAT = 1
MOST_SHOWN = 8


def write_scene(folder: RunFolder, env: VecEnv) -> None:
    """Write `scene.json`, whole or not at all; nothing for an env without a MuJoCo model."""
    hashes = env.scene_hashes()
    if not hashes:
        return
    content = {"format": FORMAT, "mujoco": version("mujoco"), "fields": hashes}
    partial = folder.scene.with_suffix(".partial")
    partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    partial.replace(folder.scene)


def compare_scene(folder: RunFolder, env: VecEnv) -> list[str]:
    """Lines that say how the scene of `env` differs from that of the run in `folder`; none where it does not.

    Raises:
        UserError: `scene.json` is damaged.
    """
    now = env.scene_hashes()
    if not now or not folder.scene.is_file():
        return []
    try:
        content = json.loads(folder.scene.read_text(encoding="utf-8"))
        before, engine = dict(content["fields"]), str(content["mujoco"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{folder.scene}: is damaged ({error!r}); restore it from a copy, or remove it"
        ) from None
    names = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
    if not names:
        return []
    shown = ", ".join(names[:MOST_SHOWN]) + (
        f" and {len(names) - MOST_SHOWN} more" if names[MOST_SHOWN:] else ""
    )
    engines = "" if engine == version("mujoco") else f" (MuJoCo was {engine}, is {version('mujoco')})"
    return [f"warning: the scene is not what the run began with: {shown} differ{engines}"]
