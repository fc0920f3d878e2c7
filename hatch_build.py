"""Makes the README's links absolute in the metadata of a wheel, so that they also work on a package index's page.

The variable README_LINKS holds the address of the repository's files, with `{view}` where it says how a file is shown:
`https://git.example.org/team/crucible_trio/{view}/v0.2.0`. `{view}` becomes `blob` for a page and `raw` for an image.
Without the variable the links stay relative.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from hatchling.metadata.plugin.interface import MetadataHookInterface

# `](docs/tutorial.md)`, and with a leading `!` before the bracket an image. Not `](https://...)` and not `](#section)`.
_RELATIVE_LINK = re.compile(r"(!?)(\[[^\]]*\])\((?![a-z]+:|#)([^)]+)\)")


class CustomMetadataHook(MetadataHookInterface):
    """Sets the dynamic field `readme`."""

    def update(self, metadata: dict[str, object]) -> None:
        """Read README.md and rewrite its links."""
        text = (Path(self.root) / "README.md").read_text("utf-8")
        metadata["readme"] = {
            "content-type": "text/markdown",
            "text": with_links(text, os.environ.get("README_LINKS", "")),
        }


def with_links(text: str, base: str) -> str:
    """The page with absolute links, or unchanged if `base` is empty."""

    def absolute(link: re.Match[str]) -> str:
        address = base.replace("{view}", "raw" if link[1] else "blob").rstrip("/")
        return f"{link[1]}{link[2]}({address}/{link[3]})"

    return _RELATIVE_LINK.sub(absolute, text) if base else text
