"""`python -m pi_runtime` is `pi-runtime`."""

from .cli import cli

cli()
