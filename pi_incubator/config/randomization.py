"""What an experiment file may say about domain randomization: the section of this name.

Every field is null, which is off, or says how its number is drawn. Factors multiply what the model says,
offsets are added to it, in the stated units.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pi_incubator.config.section import Name, Number, Positive, Seconds, Section, cross_field_error

INTERVAL_S = 10.0
MOST_STANDARD_DEVIATIONS = 9
"""No normal number that we can draw is further from the mean: 53 bits end at 8.6."""


class DrawSection(Section):
    """How a number is drawn and when."""

    distribution: Literal["uniform", "log_uniform", "normal"] = "uniform"
    """uniform or log_uniform between low and high, or normal with mean and std."""
    low: Number | None = None
    """Smallest number of uniform and log_uniform."""
    high: Number | None = None
    """Largest number of uniform and log_uniform."""
    mean: Number | None = None
    """Mean of normal."""
    std: Positive | None = None
    """Standard deviation of normal."""
    per: Literal["reset", "interval"] = "reset"
    """reset: once an episode; interval: also within it, at random times."""
    interval_s: Seconds = INTERVAL_S
    """Mean time between two draws of per: interval, in seconds."""

    def check(self, field: str, positive: bool) -> None:
        """Check that the numbers describe the distribution.

        Args:
            field: what the section is called in the file.
            positive: whether numbers must be positive, as a factor on a mass must.

        Raises:
            PydanticCustomError: they do not; the message names the number to change.
        """
        needed = ("mean", "std") if self.distribution == "normal" else ("low", "high")
        for name in ("low", "high", "mean", "std"):
            value = getattr(self, name)
            if (value is None) == (name in needed):
                problem = f"{self.distribution} is given by {needed[0]} and {needed[1]}"
                fix = f"set {name} to a number" if name in needed else f"remove {name}"
                raise _error(field, name, value, problem, fix)
        if self.per == "reset" and self.interval_s != INTERVAL_S:
            fix = "remove it, or set per to interval"
            raise _error(field, "interval_s", self.interval_s, "has no effect with per = reset", fix)
        if self.low is not None and self.high is not None:
            self._check_range(field, self.low, self.high, positive)
        if self.mean is not None and self.std is not None and positive:
            self._check_factor(field, self.mean, self.std)

    def _check_range(self, field: str, low: float, high: float, positive: bool) -> None:
        if low >= high:
            problem = f"must be less than high = {high:g}"
            raise _error(field, "low", low, problem, "exchange the two, or set low lower")
        if low <= 0 and self.distribution == "log_uniform":
            fix = "set it above 0, or distribution to uniform"
            raise _error(field, "low", low, "log_uniform needs positive numbers", fix)
        if low <= 0 and positive:
            fix = "set it above 0; 1 is what the model says"
            raise _error(field, "low", low, "a factor must be positive", fix)

    @staticmethod
    def _check_factor(field: str, mean: float, std: float) -> None:
        widest = mean / MOST_STANDARD_DEVIATIONS
        if std > widest:
            problem = f"a factor must be positive, and with mean = {mean:g} this reaches below 0"
            fix = f"set it to {widest:.3g} or less, or distribution to log_uniform"
            raise _error(field, "std", std, problem, fix)


class ElementsSection(DrawSection):
    """How a number is drawn, when, and for which elements of the model."""

    names: Name = "*"
    """Shell pattern of the elements' names; the others stay as they are."""
    shared: bool = False
    """Whether all elements of a world share one number, or each has its own."""


class DelaySection(Section):
    """Whole control steps, drawn once an episode, each number as likely."""

    low: Annotated[int, Field(ge=0, le=1000)] = 0
    """Shortest delay, in control steps."""
    high: Annotated[int, Field(ge=0, le=1000)]
    """Longest delay, in control steps."""


class InitialStateSection(Section):
    """Offsets to the state that the task starts from."""

    position: ElementsSection | None = None
    """Offset of every position of the joints that names matches, in m or rad."""
    velocity: ElementsSection | None = None
    """Offset of every velocity of the joints that names matches, in m/s or rad/s."""


FACTORS = ("friction", "mass", "inertia", "gains", "damping", "armature", "motor_strength")
"""Fields whose numbers must be positive."""


class RandomizationSection(Section):
    """What differs between worlds; null is off."""

    friction: ElementsSection | None = None
    """Factor on the sliding friction of geoms; a contact takes the larger of its two: set shared."""
    mass: ElementsSection | None = None
    """Factor on the mass of bodies, and on their inertia along with it."""
    inertia: ElementsSection | None = None
    """Factor on the rotational inertia of bodies, beside that of mass."""
    com: ElementsSection | None = None
    """Offset of the center of mass of bodies along x, y and z each, in m."""
    gains: ElementsSection | None = None
    """Factor on the stiffness of servos (kp), or on the gain of motors; names are actuators."""
    damping: ElementsSection | None = None
    """Factor on the damping of joints, and on that of the servos that move them (kv)."""
    armature: ElementsSection | None = None
    """Factor on the armature (rotor inertia) of joints."""
    gravity: DrawSection | None = None
    """Factor on gravity."""
    motor_strength: ElementsSection | None = None
    """Factor on all that an actuator exerts: gain, bias and force limits."""
    action_delay: DelaySection | None = None
    """Whole control steps from an action to its effect; zero actions come before the first."""
    observation_noise: DrawSection | None = None
    """Added at every step to each entry of the policy's observation, times the task's scale of it."""
    pushes: ElementsSection | None = None
    """Added now and then to each velocity of the floating base, or else of all joints, in m/s or rad/s."""
    initial_state: InitialStateSection | None = None
    """Offsets to the state that the task starts from."""

    @model_validator(mode="after")
    def _numbers_fit(self) -> RandomizationSection:
        for name in type(self).model_fields:
            draw = getattr(self, name)
            if isinstance(draw, DrawSection):
                draw.check(name, positive=name in FACTORS)
        for name in ("position", "velocity"):
            if self.initial_state and (draw := getattr(self.initial_state, name)):
                draw.check(f"initial_state.{name}", positive=False)
        start = self.initial_state or InitialStateSection()
        once = {
            "observation_noise": self.observation_noise,
            "initial_state.position": start.position,
            "initial_state.velocity": start.velocity,
        }
        for name, draw in once.items():
            if draw and draw.per == "interval":
                raise _error(name, "per", draw.per, "it has times of its own", "leave per out")
        if (delay := self.action_delay) and delay.low > delay.high:
            problem = f"must be at most high = {delay.high}"
            raise _error("action_delay", "low", delay.low, problem, "exchange the two, or set low lower")
        if (pushes := self.pushes) and pushes.per == "reset":
            fix = "set it to interval, and initial_state.velocity for the start"
            raise _error("pushes", "per", pushes.per, "a push comes within an episode", fix)
        return self


def _error(field: str, name: str, value: object, problem: str, fix: str) -> Exception:
    where = f"randomization.{field}.{name}"
    return cross_field_error(field=where, value=value, problem=problem, fix=fix)
