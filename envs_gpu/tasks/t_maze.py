"""Choose the arm of a T-maze whose cue was shown about 55 steps ago."""

from __future__ import annotations

from envs_gpu.tasks import task
from envs_gpu.tasks._t_maze import TMaze


@task("t_maze")
class RememberedTMaze(TMaze):
    """The cue is shown at the first step alone; see `TMaze`."""

    shows_cue_always = False
