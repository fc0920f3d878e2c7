"""The command `crucible`."""

from crucible_trio.cli.main import main

__all__ = ["main"]
