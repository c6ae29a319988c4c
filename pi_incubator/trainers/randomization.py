"""From the experiment file's section to what the env understands."""

from __future__ import annotations

from envs_gpu.draw import Draw
from envs_gpu.randomize import Delay, Randomization
from pi_incubator.config.randomization import DrawSection, RandomizationSection


def describe(section: RandomizationSection) -> Randomization:
    """The env's description of `section`, which has checked itself."""
    knobs = {name: getattr(section, name) for name in type(section).model_fields}
    draws = {name: _draw(knob) for name, knob in knobs.items() if isinstance(knob, DrawSection)}
    if start := section.initial_state:
        draws |= {f"initial_{name}": _draw(value) for name, value in start if value}
    delay = section.action_delay
    return Randomization(action_delay=Delay(delay.low, delay.high) if delay else None, **draws)


def _draw(section: DrawSection) -> Draw:
    return Draw(**{name: value for name, value in section if value is not None})
