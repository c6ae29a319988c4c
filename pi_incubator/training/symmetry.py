"""Left-right symmetry: learning from mirror images of what was collected.

Letters: K shards of worlds, B samples of a minibatch.
"""

from __future__ import annotations

from collections.abc import Iterable

from tensordict import TensorDict

from envs_gpu.errors import EnvError, SettingError
from envs_gpu.mirror import EnvMirror
from envs_gpu.vec_env import VecEnv
from pi_incubator.data.replay.replay import NEXT, OBS


def mirror_of(env: VecEnv, groups: Iterable[str], field: str, value: object) -> EnvMirror:
    """The mirror of actions and of observation `groups`, for the setting `field`, which is `value`.

    Raises:
        SettingError: the task declares none.
    """
    try:
        return env.mirror(groups)
    except EnvError as error:
        fix = "remove it, or name a task whose observations have a mirror, such as go1_velocity"
        raise SettingError(field, value, str(error), fix) from error


def mirror_half(minibatch: TensorDict, mirror: EnvMirror, num_shards: int) -> None:
    """Replace every second sample of each shard by its mirror image, in the minibatch's own tensors.

    A step and its mirror image are not both in a minibatch: it has as many different steps as before, and
    each is as likely to be seen from either side. Reward, ends and weight of a step are those of its image.
    Neighbours alternate because a prioritized buffer gives samples in the order of their places.

    Args:
        minibatch: of batch `[B]`, by the names of the replay contract, shard after shard.
        mirror: of its groups and the action.
        num_shards: K.
    """
    mirrors = {"action": mirror.action}
    for group, reflect in mirror.groups.items():
        mirrors |= {OBS + group: reflect, NEXT + group: reflect}
    for name, reflect in mirrors.items():
        chosen = minibatch[name].unflatten(0, (num_shards, -1))[:, 1::2]
        chosen.copy_(reflect(chosen))
