"""The parts of the content in a responses request, which become parts for the engine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar, final

import msgspec

from crucible_trio.apis.kit.content import PartReader, make_file, make_image, make_part
from crucible_trio.apis.kit.errors import UnsupportedParameterError
from crucible_trio.apis.kit.fields import dotted
from crucible_trio.apis.kit.ignored import Ignored
from crucible_trio.apis.kit.parsing import valid
from crucible_trio.engine import Capabilities
from crucible_trio.errors import InvalidRequestError
from crucible_trio.request import AudioPart, Part, TextPart

_Shape = TypeVar("_Shape", bound=msgspec.Struct)


@final
class _TextPart(msgspec.Struct):
    type: str
    text: str
    prompt_cache_breakpoint: object = None  # a hint for a cache


@final
class _ImagePart(msgspec.Struct):
    type: str
    image_url: str | None = None
    detail: str | None = None
    file_id: object = None
    prompt_cache_breakpoint: object = None


@final
class _FilePart(msgspec.Struct):
    type: str
    file_data: str | None = None
    file_url: str | None = None
    filename: str | None = None
    file_id: object = None
    prompt_cache_breakpoint: object = None


@final
class _Audio(msgspec.Struct):
    data: str
    format: str


@final
class _AudioPart(msgspec.Struct):
    type: str
    input_audio: _Audio


@final
class InputParts:
    """Reads parts.

    Args:
        can: The model's capabilities.
        ignored: Takes the names of fields that are ignored.

    Attributes:
        readers: The readers of the parts that the model understands, by type.
    """

    def __init__(self, can: Capabilities, ignored: Ignored) -> None:
        self._ignored = ignored
        self.readers: dict[str, PartReader] = dict.fromkeys(("input_text", "output_text", "text"), self._read_text)
        if can.images:
            self.readers["input_image"] = self._read_image
        if can.files:
            self.readers["input_file"] = self._read_file
        if can.audio:
            self.readers["input_audio"] = self._read_audio

    def _read_text(self, part: Mapping[str, object], at: str) -> Part | None:
        text = self._read_part(part, at, _TextPart).text
        return TextPart(text) if text else None

    def _read_image(self, part: Mapping[str, object], at: str) -> Part:
        image = self._read_part(part, at, _ImagePart)
        if image.image_url is None:
            raise _lacks(part, at, "image_url")
        return make_image(image.image_url, dotted(at, "image_url"), image.detail)

    def _read_file(self, part: Mapping[str, object], at: str) -> Part:
        file = self._read_part(part, at, _FilePart)
        if file.file_data:
            return make_file(file.file_data, dotted(at, "file_data"), file.filename)
        if file.file_url:
            return make_file(file.file_url, dotted(at, "file_url"), file.filename)
        raise _lacks(part, at, "file_data")

    def _read_audio(self, part: Mapping[str, object], at: str) -> Part:
        audio = self._read_part(part, at, _AudioPart).input_audio
        return make_part(AudioPart, dotted(at, "input_audio"), data=audio.data, format=audio.format)

    def _read_part(self, part: Mapping[str, object], at: str, shape: type[_Shape]) -> _Shape:
        known = self._ignored.known(part, shape.__struct_fields__, at)
        return valid(lambda: msgspec.convert(known, shape), at)


def _lacks(part: Mapping[str, object], at: str, name: str) -> Exception:
    """The error of a part without data. This server keeps no files, so a part that names one is not supported."""
    if part.get("file_id") is not None:
        return UnsupportedParameterError(dotted(at, "file_id"))
    return InvalidRequestError(f"the part has no {name}", dotted(at, name))
