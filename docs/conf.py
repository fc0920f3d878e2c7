"""The Sphinx configuration, and the generator of the settings table.

`python docs/conf.py` writes the table into docs/reference/config.md. If the table is stale, the build and a test fail.
"""

from __future__ import annotations

import ast
import inspect
import math
import re
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from crucible_trio.settings.loading import ENVIRONMENT_PREFIX, GROUPS
from crucible_trio.settings.upstreams import CapabilitySettings, UpstreamSettings, default_of

if TYPE_CHECKING:
    from sphinx.application import Sphinx

project = "crucible_trio"
copyright = "the crucible_trio authors, MIT licence"
release = installed_version("crucible_trio")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build", "examples"]
html_theme = "furo"
html_title = f"crucible_trio {release}"
html_show_sphinx = False
html_show_copyright = False
html_copy_source = False
myst_heading_anchors = 3

# Docstrings write code between single backticks.
default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autodoc_type_aliases = {"ASGIFramework": "ASGIFramework"}  # expanded, it fills half a page
napoleon_google_docstring = True
napoleon_numpy_docstring = False

CONFIG_PAGE = Path(__file__).parent / "reference" / "config.md"
ONLY_IN_PROGRAMS = {"key"}
BEGIN, END = "<!-- generated: begin -->\n", "<!-- generated: end -->\n"


def settings_table() -> str:
    """The settings as Markdown, a table for each part of each class."""
    return "\n".join(line for group in (*GROUPS, UpstreamSettings) for line in _rows(group)).strip() + "\n"


def _rows(settings: type[msgspec.Struct]) -> list[str]:
    source = inspect.getsource(settings)
    lines = source.splitlines()
    schema = msgspec.json.schema(settings)["$defs"][settings.__name__]["properties"]
    fields = {field.name: field for field in msgspec.structs.fields(settings)}
    body = ast.parse(source).body[0]
    assert isinstance(body, ast.ClassDef)
    out: list[str] = []
    for field, text in zip(body.body, body.body[1:], strict=False):
        if not (isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)):
            continue
        if group := re.fullmatch(r" {4}# (.+)\.", lines[field.lineno - 2]):
            out += ["", f"### {group[1]}", "", "| setting | takes | meaning |", "|---|---|---|"]
        assert isinstance(text, ast.Expr)
        assert isinstance(text.value, ast.Constant)
        name = field.target.id
        if name in ONLY_IN_PROGRAMS:
            continue
        meaning = inspect.cleandoc(text.value.value).replace("\n", " ").replace("|", r"\|")
        variable = "" if settings is UpstreamSettings else f"<br>`{ENVIRONMENT_PREFIX}{name.upper()}`"
        default = "needed" if fields[name].required else f"default: {_shown(default_of(fields[name]))}"
        out.append(f"| `{name}`{variable} | {_takes(schema[name])}<br>{default} | {meaning} |")
    return out


def _shown(value: object) -> str:
    if value in (None, (), {}, CapabilitySettings()):
        return "none"
    if isinstance(value, tuple):
        return ", ".join(f"`{part}`" for part in value)
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, int):
        mib = value / 2**20
        return f"{value:,}" + (f" ({mib:g} MiB)" if mib >= 1 and mib.is_integer() else "")
    return f"`{value:g}`" if isinstance(value, float) and math.isfinite(value) else f"`{value}`"


def _takes(schema: dict[str, object]) -> str:
    if "anyOf" in schema:  # an optional setting: skip the null
        options = schema["anyOf"]
        assert isinstance(options, list)
        schema = next(option for option in options if option != {"type": "null"})
    if "enum" in schema:
        choices = schema["enum"]
        assert isinstance(choices, list)
        return ", ".join(f"`{choice}`" for choice in choices)
    if "$ref" in schema:  # a struct
        return "table"
    kinds = {
        "integer": "integer",
        "number": "number",
        "string": "text",
        "boolean": "`true`, `false`",
        "array": "list of texts",
        "object": "table of texts" if "'string'" in str(schema.get("additionalProperties")) else "table",
    }
    kind = kinds[str(schema["type"])]
    if "maximum" in schema:
        return f"{kind}, {schema['minimum']} to {schema['maximum']}"
    if "minimum" in schema:
        return f"{kind}, {schema['minimum']} or more"
    return f"{kind}, more than {schema['exclusiveMinimum']}" if "exclusiveMinimum" in schema else kind


def with_table(page: str) -> str:
    """The page with an up-to-date table."""
    before, _, rest = page.partition(BEGIN)
    return f"{before}{BEGIN}\n{settings_table()}\n{END}{rest.partition(END)[2]}"


def setup(app: Sphinx) -> None:
    from sphinx.util.logging import getLogger

    def check(_: Sphinx) -> None:
        page = CONFIG_PAGE.read_text("utf-8")
        if page != with_table(page):
            getLogger(__name__).warning("reference/config.md is stale: run `python docs/conf.py`")

    app.connect("builder-inited", check)


if __name__ == "__main__":
    CONFIG_PAGE.write_text(with_table(CONFIG_PAGE.read_text("utf-8")), "utf-8")
