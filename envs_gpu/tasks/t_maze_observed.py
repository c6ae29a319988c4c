"""Choose the arm of a T-maze whose cue is always shown: the control of `t_maze`, which needs no memory."""

from __future__ import annotations

from envs_gpu.tasks import task
from envs_gpu.tasks._t_maze import TMaze


@task("t_maze_observed")
class ObservedTMaze(TMaze):
    """The cue is shown at every step; see `TMaze`."""

    shows_cue_always = True
