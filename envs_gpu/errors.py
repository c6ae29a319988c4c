"""Errors of this package that a user can cause and mend; commands print them without a traceback."""


class EnvError(Exception):
    """One clear line: what is wrong and what to do."""


class SettingError(EnvError, ValueError):
    """A setting with a wrong value.

    Args:
        field: its full name in an experiment file, such as `env.task.control_cost_weight`.
        value: what it was set to.
        problem: what is wrong with it.
        fix: what to write instead.
    """

    def __init__(self, field: str, value: object, problem: str, fix: str) -> None:
        self.field, self.value, self.problem, self.fix = field, value, problem, fix
        super().__init__(f"{field} = {value}: {problem}; {fix}")


class RobotUnavailableError(EnvError):
    """A robot's files could be neither found nor downloaded."""


class BrokenWorldsError(EnvError):
    """More worlds than allowed have a simulation that blew up."""


class DumpError(EnvError):
    """The dump of a broken world cannot be read or replayed."""


class ModelError(EnvError):
    """An MJCF model that cannot be read, compiled or acted in; names file, element and line where known."""


class ModelChoiceError(EnvError):
    """A task was given a robot that it does not take, or lacks one; `problem` and `fix` for `env.model`."""

    def __init__(self, problem: str, fix: str) -> None:
        self.problem, self.fix = problem, fix
        super().__init__(f"env.model: {problem}; {fix}")
