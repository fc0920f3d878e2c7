"""The engine for a real model in this process."""

from crucible_trio.engines.local.engine import LocalEngine, open_local

__all__ = ["LocalEngine", "open_local"]
