"""The version of this package; below everything else, so that every module may import it."""

__version__ = "0.2.0"
