"""Hosted tools: those that the server of an API runs, such as a search of the web. This server has none."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Final, final

logger = logging.getLogger(__name__)

# Clients choose the names.
_MAX_TYPES: Final = 50


@final
class HostedToolsLog:
    """Logs each type of hosted tool once, because some agents offer the same ones in every request."""

    def __init__(self) -> None:
        self._logged: set[str] = set()

    def add(self, types: Sequence[str]) -> None:
        """Log the types of one request that are new."""
        for kind in types:
            if kind not in self._logged and len(self._logged) < _MAX_TYPES:
                self._logged.add(kind)
                logger.info("the hosted tool %.64a does not exist here and is not offered to models", kind)
