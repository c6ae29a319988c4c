"""Errors of this package that a user can cause and mend; commands print them without a traceback."""


class EnvError(Exception):
    """One clear line: what is wrong and what to do."""


class RobotUnavailableError(EnvError):
    """A robot's files could be neither found nor downloaded."""


class BrokenWorldsError(EnvError):
    """More worlds than allowed have a simulation that blew up."""


class DumpError(EnvError):
    """The dump of a broken world cannot be read or replayed."""
