"""The application that serves all APIs, on quart-trio."""

from crucible_trio.web.app import blueprint, create_app

__all__ = ["blueprint", "create_app"]
