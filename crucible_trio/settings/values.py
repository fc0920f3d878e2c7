"""Reads and converts settings, and says in plain words what is wrong with them."""

from __future__ import annotations

import difflib
import json
import tomllib
import types
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import msgspec

from crucible_trio.errors import ConfigError

_LONGEST_QUOTE: Final = 60
_MOST_BITS: Final = 10_000
_NOTHING: Final = msgspec.Meta()

Group = TypeVar("Group", bound=msgspec.Struct)


def read_toml(path: Path, what: str, origin: str = "") -> dict[str, object]:
    """Read a TOML file.

    Args:
        path: The file.
        what: The kind of file, for messages.
        origin: What named the file, for the end of messages.

    Raises:
        ConfigError: The file cannot be read, or is not TOML.
    """
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, OSError):
            reason = error.strerror or type(error).__name__
        elif isinstance(error, UnicodeError):
            reason = "it is not UTF-8 text"
        else:
            reason = "it is nested too deeply" if isinstance(error, RecursionError) else f"it is not TOML: {error}"
        message = f"cannot read the {what} {path}: {reason}{origin}"
        raise ConfigError(message) from error


def make_struct(group: type[Group], values: Mapping[str, object]) -> Group:
    """Make a group of settings. Values without a field in it are ignored.

    Raises:
        ConfigError: A value has the wrong type or is out of range.
    """
    annotations = get_type_hints(group, include_extras=True)
    return group(**{name: convert(name, values[name], annotations[name]) for name in annotations if name in values})


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """The end of a message about an unknown name: a similar name, if there is one."""
    found = difflib.get_close_matches(name, names, n=1, cutoff=0.75)
    return f", did you mean {found[0]}?" if found else ""


def convert(setting: str, value: object, annotation: object) -> object:
    """Convert the value of a setting to its type. Text may stand for a number, because the environment holds only text.

    Raises:
        ConfigError: The value has the wrong type or is out of range. The message names the innermost part at fault.
    """
    try:
        _refuse_undecodable(setting, value)
        return msgspec.convert(value, annotation, strict=False)
    except msgspec.ValidationError as error:
        problem = next(_problems(setting, value, annotation), f"{setting} must be {expectation(annotation)}")
        raise ConfigError(problem, setting) from error
    except RecursionError as error:
        message = f"{setting} is nested too deeply"
        raise ConfigError(message, setting) from error


def expectation(annotation: object) -> str:
    """What a value of this type is, in words: `a whole number of 1 or more`."""
    kind, limits = _core(annotation)
    if get_origin(kind) is Literal:
        return f"one of {', '.join(map(str, get_args(kind)))}"
    if kind is bool:
        return "true or false"
    if kind is str:
        return "text that is not empty" if limits.min_length else "text"
    if kind in {int, float}:
        return f"{'a whole number' if kind is int else 'a number'}{_range(limits)}"
    if get_origin(kind) in {tuple, list}:
        return "a list"
    return "a table"


def quote(value: object) -> str:
    """A value for a message: on one line, and not long."""
    if isinstance(value, bool):
        return str(value).lower()
    if value is None:
        return "null"
    if isinstance(value, Mapping):
        return "a table"
    if isinstance(value, list | tuple):
        return "a list"
    if not isinstance(value, str | int | float):
        return f"a {type(value).__name__}"
    if isinstance(value, int) and value.bit_length() > _MOST_BITS:  # Python refuses to write it as text
        return "a number with thousands of digits"
    text = repr(value) if isinstance(value, str) else f"{value:g}" if isinstance(value, float) else str(value)
    return text if len(text) <= _LONGEST_QUOTE else f"{text[:_LONGEST_QUOTE]}..."


def _problems(path: str, value: object, annotation: object) -> Iterator[str]:
    """What is wrong with a value, from the outside in. The first problem is the one to report."""
    kind, _ = _core(annotation)
    if value is None and type(None) in get_args(annotation):  # an optional setting
        return
    parts = get_args(kind)
    if get_origin(kind) in {tuple, list} and isinstance(value, list | tuple):
        for number, part in enumerate(value):
            yield from _problems(f"{path}[{number}]", part, parts[0])
    elif get_origin(kind) is dict and isinstance(value, Mapping):
        for key, part in value.items():
            if key == "":
                yield f"{path} has an entry without a name"
            elif not _fits(key, parts[0]):
                yield f"{path} has the unknown key {quote(key)}: a key must be {expectation(parts[0])}"
            yield from _problems(f"{path}.{name_in_path(key)}", part, parts[1])
    elif isinstance(kind, type) and issubclass(kind, msgspec.Struct) and isinstance(value, Mapping):
        yield from _problems_in_struct(path, value, kind)
    elif not _fits(value, annotation):
        if value == "":
            yield f"{path} must be {expectation(annotation)}, but it is empty"
        elif _may_be_secret(annotation):
            yield f"{path} must be {expectation(annotation)}"
        else:
            yield f"{path} must be {expectation(annotation)}, not {quote(value)}"


def _problems_in_struct(path: str, value: Mapping[object, object], kind: type[msgspec.Struct]) -> Iterator[str]:
    fields = get_type_hints(kind, include_extras=True)
    for key, part in value.items():
        if key in fields:
            yield from _problems(f"{path}.{key}", part, fields[str(key)])
        else:
            yield f"{path} has the unknown key {quote(key)}: a key must be one of {', '.join(fields)}"
    for field in msgspec.structs.fields(kind):
        if field.required and field.name not in value:
            yield f"{path}.{field.name} is missing"
    try:
        msgspec.convert(value, kind, strict=False)
    except msgspec.ValidationError as error:  # if every part has the right type, the struct has refused the whole
        yield f"{path}: {error.__cause__}"


def check_json(name: str, value: object) -> None:
    """Check a value that is sent as JSON. TOML also has dates, and numbers that are none.

    Raises:
        ConfigError: JSON cannot hold it.
    """
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        message = f"{name} holds a value that JSON cannot hold, such as a date, inf or nan"
        raise ConfigError(message, name) from error


def name_in_path(key: object) -> str:
    """A key of a table for a message, quoted if it is not a plain name."""
    return key if isinstance(key, str) and key.replace("-", "_").isidentifier() else quote(key)


def _fits(value: object, annotation: object) -> bool:
    try:
        msgspec.convert(value, annotation, strict=False)
    except msgspec.ValidationError:
        return False
    return True


def _core(annotation: object) -> tuple[Any, msgspec.Meta]:
    """A type without `| None` and without `Annotated`, and its limits."""
    if get_origin(annotation) in {Union, types.UnionType}:
        annotation = next(part for part in get_args(annotation) if part is not type(None))
    if get_origin(annotation) is Annotated:
        annotation, limits, *_ = get_args(annotation)
        return annotation, limits
    return annotation, _NOTHING


def _may_be_secret(annotation: object) -> bool:
    _, limits = _core(annotation)
    return bool((limits.extra or {}).get("secret")) or any(map(_may_be_secret, get_args(annotation)))


def _range(limits: msgspec.Meta) -> str:
    if limits.gt is not None:
        return f" greater than {limits.gt}"
    if limits.ge is not None and limits.le is not None:
        return f" from {limits.ge} to {limits.le}"
    return f" of {limits.ge} or more" if limits.ge is not None else ""


def _refuse_undecodable(setting: str, value: object) -> None:
    """Refuse bytes of the environment or the command line that are not UTF-8. Nothing could encode them later."""
    if isinstance(value, Mapping):
        for part in (*value.keys(), *value.values()):
            _refuse_undecodable(setting, part)
    elif isinstance(value, list | tuple):
        for part in value:
            _refuse_undecodable(setting, part)
    elif isinstance(value, str) and not _is_utf8(value):
        message = f"{setting} must be UTF-8 text"
        raise ConfigError(message, setting)


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
