"""Errors of this package that a user can cause and mend; commands print them without a traceback."""


class EnvError(Exception):
    """One clear line: what is wrong and what to do."""


class RobotUnavailableError(EnvError):
    """A robot's files could be neither found nor downloaded; `robot` is Menagerie's name of it."""

    def __init__(self, message: str, robot: str) -> None:
        self.robot = robot
        super().__init__(message)


class BrokenWorldsError(EnvError):
    """More worlds than allowed have a simulation that blew up."""


class DumpError(EnvError):
    """The dump of a broken world cannot be read or replayed."""


class ModelError(EnvError):
    """An MJCF model that cannot be read, compiled or acted in; names file, element and line where known."""


class SettingError(EnvError, ValueError):
    """A setting that cannot be used. Who knows which file it is from adds that: see `explain_settings`.

    Args:
        field: the setting's name in an experiment file, such as `env.task.control_cost_weight`.
        value: what it was.
        problem: what is wrong with it.
        fix: what to write instead.
    """

    def __init__(self, field: str, value: object, problem: str, fix: str) -> None:
        self.field, self.value, self.problem, self.fix = field, value, problem, fix
        super().__init__(f"{field} = {value!r}: {problem}; {fix}")


class ModelChoiceError(SettingError):
    """A task was given a robot that it does not take, or lacks one."""

    def __init__(self, model: str | None, problem: str, fix: str) -> None:
        super().__init__("env.model", model, problem, fix)
