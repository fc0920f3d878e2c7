"""The content of a message in a request: a text, or parts of the types that the API and the model know."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import msgspec

from crucible_trio.apis.kit.errors import UnsupportedParameterError
from crucible_trio.apis.kit.fields import dotted
from crucible_trio.apis.kit.parsing import valid
from crucible_trio.errors import InvalidRequestError
from crucible_trio.request import (
    FILE_URL,
    IMAGE_URL,
    FilePart,
    ImagePart,
    Part,
    TextPart,
    is_image_url,
    is_url,
)

GivenContent: TypeAlias = str | list[dict[str, object]]
PartReader: TypeAlias = Callable[[Mapping[str, object], str], Part | None]
"""Reads a part of one type at a place. None: the part is empty."""


def read_content(content: GivenContent, at: str, readers: Mapping[str, PartReader]) -> str | tuple[Part, ...]:
    """Read a content. Texts are joined by a line end, as vLLM and llama.cpp join them, unless other parts are between.

    Args:
        content: The content.
        at: Its place in the body, as a dotted path.
        readers: The readers of its parts, by type. Other types are refused.

    Returns:
        A text, or parts. Empty if there is nothing in it.

    Raises:
        UnsupportedParameterError: A part has another type.
        UnknownParameterError: A part has an unknown field.
        InvalidRequestError: A part is invalid.
    """
    if isinstance(content, str):
        return content
    parts: list[Part] = []
    for index, given in enumerate(content):
        place = f"{at}[{index}]"
        kind = given.get("type")
        if kind is None:
            raise InvalidRequestError("a part has a type", dotted(place, "type"))
        reader = readers.get(kind) if isinstance(kind, str) else None
        if reader is None:
            why = f"the model or this API takes no part {str(kind)[:64]!r}"
            raise UnsupportedParameterError(dotted(place, "type"), why)
        part = reader(given, place)
        if part is not None:
            parts.append(part)
    texts = [part.text for part in parts if isinstance(part, TextPart)]
    return "\n".join(texts) if len(texts) == len(parts) else tuple(parts)


def make_part(kind: type[Any], at: str, **fields: object) -> Part:
    """Make a part of values from a request.

    Raises:
        InvalidRequestError: A value is invalid.
    """
    given = {name: value for name, value in fields.items() if value is not None}
    part: Part = valid(lambda: msgspec.convert(given | {"type": kind.__struct_config__.tag}, Part), at)
    return part


def make_image(url: str, at: str, detail: str | None = None) -> ImagePart:
    """Make an image of a URL from a request.

    Args:
        url: The URL.
        at: Its place in the body, as a dotted path.
        detail: As in `ImagePart`.

    Raises:
        InvalidRequestError: It is not a URL that an engine may get.
    """
    if not is_image_url(url):
        raise InvalidRequestError(IMAGE_URL, at)
    return ImagePart(url, detail)


def make_file(url: str, at: str, name: str | None = None) -> FilePart:
    """Make a file of a URL from a request. The arguments and errors are those of `make_image`."""
    if not is_url(url):
        raise InvalidRequestError(FILE_URL, at)
    return FilePart(url, name)
