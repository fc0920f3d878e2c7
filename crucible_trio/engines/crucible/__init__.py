"""The engine for another crucible_trio, whose streams it reads over the native API."""

from crucible_trio.engines.crucible.engine import CrucibleEngine, open_crucible_upstream

__all__ = ["CrucibleEngine", "open_crucible_upstream"]
