"""Errors of this package that a user can cause and mend; commands print them without a traceback."""


class EnvError(Exception):
    """One clear line: what is wrong and what to do."""


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
