"""A new run starts with what another run has learned: `checkpoint.from`.

The policy and the normalizer of its observations must fit. What else was learned is taken where it fits:
critics, the standard deviation, SAC's temperature, the normalizers of other observation groups. The state of
the other training (optimizers, worlds, buffers, random numbers, counters) is not taken.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from torch import Tensor

from envs_gpu.errors import SettingError
from pi_incubator.checkpoint import ALONE, POLICY, HasState, Part, Pinned, State, describe, pin
from pi_incubator.checkpoint_files import Checkpoint
from pi_incubator.distributed import Distributed
from pi_incubator.inputs import FROM

WEIGHTS = "weights"
"""The tensors of a part that are taken together or not at all; others are taken one by one."""


def start_from(
    run: str, parts: Mapping[str, Part], groups: Sequence[str], distributed: Distributed = ALONE
) -> tuple[Checkpoint, list[str]]:
    """Load what `run` has learned into `parts`, which are new.

    All ranks call it; rank 0 reads.

    Args:
        run: the folder of the other run.
        parts: of the new run.
        groups: the observation groups that the policy reads.
        distributed: the ranks.

    Returns:
        The checkpoint that was read, and lines that say what was taken, what was not, and why.

    Raises:
        SettingError: the policy does not fit.
        UserError: the run has no whole checkpoint.
    """
    learned = {name: part.value for name, part in parts.items() if part.is_learned}
    pinned: Pinned = distributed.broadcast(pin(run, tuple(learned)) if distributed.is_main else None)
    found = pinned.checkpoint
    lines = [f"starting with the weights of {run}, iteration {found.iteration:,}"]
    for name, value in learned.items():
        there = pinned.states.get(name)
        if there is None:
            lines.append(f"  {name}: not taken, that run has none")
            continue
        required = (WEIGHTS, *(f"normalizer.{group}" for group in groups)) if name == POLICY else ()
        lines += [f"  {name}: {line}" for line in _take(run, value, there, required)]
    files = (Path(file).stem for file in found.files)
    others = sorted({file.partition(".")[0] for file in files} - learned.keys())
    lines.append(f"  not taken, because they belong to that training: {', '.join(others)}")
    return found, lines


def _take(run: str, value: HasState, there: State, required: tuple[str, ...]) -> Iterator[str]:
    """Load the units of `there` that fit into `value`; yields a line for each unit."""
    here = value.state_dict()
    taken: State = {}
    for unit in sorted(
        {_unit(key) for key in here.keys() | there.keys()}, key=lambda unit: (unit == WEIGHTS, unit)
    ):
        ours = {key: tensor for key, tensor in here.items() if _unit(key) == unit}
        theirs = {key: tensor for key, tensor in there.items() if _unit(key) == unit}
        problem = _misfit(ours, theirs)
        if problem is None:
            taken |= theirs
            yield f"{unit} taken"
        elif unit in required:
            fix = "name a run with the same observations, actions and network"
            raise SettingError(FROM, run, f"its policy does not fit: {problem}", fix)
        else:
            yield f"{unit} not taken: {problem}"
    value.load_state_dict(dict(here) | taken)


def _unit(key: str) -> str:
    """The unit that the tensor `key` of a part belongs to."""
    if key.startswith("normalizer."):
        return ".".join(key.split(".")[:2])
    return WEIGHTS if "." in key else key


def _misfit(here: Mapping[str, Tensor], there: Mapping[str, Tensor]) -> str | None:
    """The first tensor that differs in form; None where all fit."""
    for key in sorted(here.keys() | there.keys()):
        ours, theirs = here.get(key), there.get(key)
        if ours is None or theirs is None or (ours.shape, ours.dtype) != (theirs.shape, theirs.dtype):
            return f"{key} is {describe(theirs)} there and {describe(ours)} here"
    return None
