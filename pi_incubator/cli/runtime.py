"""`pi-runtime`: check, time and run an exported policy; convert its log."""

from __future__ import annotations

# The runtime has its own command line, because it also runs where nothing else of this project is installed.
from pi_incubator.runtime.cli import cli

if __name__ == "__main__":
    cli()
