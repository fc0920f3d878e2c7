"""The import rules of the package, and those of `crucible_trio/apis` and `crucible_trio/web` in particular."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import crucible_trio

ROOT = Path(crucible_trio.__file__).parent
APIS = sorted(path for path in (ROOT / "apis").rglob("*.py") if path.name != "__init__.py")
# Modules that know nothing of HTTP. Everything outside the kit that is not a module of routes.
PURE = [path for path in APIS if path.name != "routes.py" and path.parent.name != "kit"]
_PURE_KIT = (
    "content",
    "dialect",
    "errors",
    "failures",
    "fields",
    "ignored",
    "models",
    "parsing",
    "plain_dialect",
    "replay",
    "request_builder",
    "sealed",
    "silence",
)
KIT_PURE = [ROOT / "apis/kit" / f"{name}.py" for name in _PURE_KIT]


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT.parent).with_suffix("").parts)


def imports_of(path: Path, *, for_annotations: bool = False) -> set[str]:
    """Every module that a file imports at run time, and, if asked for, for annotations alone."""
    tree = ast.parse(path.read_text("utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING" and not for_annotations:
            node.body = []
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            assert node.module is not None
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def imports_any(path: Path, *packages: str) -> set[str]:
    return {name for name in imports_of(path) for package in packages if f"{name}.".startswith(f"{package}.")}


def test_folds_requests_and_error_shapes_load_no_web_framework() -> None:
    modules = [module_of(path) for path in [*PURE, *KIT_PURE]]
    assert "crucible_trio.apis.native.fold" in modules
    assert "crucible_trio.apis.openai.chat.requests" in modules
    # Each in a fresh interpreter would be slow, and the first module that loads Quart is found this way as well.
    program = f"""
import importlib, sys
for module in {modules!r}:
    importlib.import_module(module)
    loaded = {{"quart", "quart_trio", "hypercorn"}} & set(sys.modules)
    assert not loaded, (module, loaded)
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


@pytest.mark.parametrize("path", APIS, ids=module_of)
def test_an_api_imports_neither_the_server_nor_the_application(path: Path) -> None:
    assert not imports_any(path, "hypercorn", "quart_trio", "crucible_trio.server", "crucible_trio.web")


@pytest.mark.parametrize("path", APIS, ids=module_of)
def test_an_api_imports_itself_and_the_kit_but_no_other_api(path: Path) -> None:
    family, *_ = path.relative_to(ROOT / "apis").parts
    allowed = {"crucible_trio.apis.kit", f"crucible_trio.apis.{family}"}
    for name in imports_any(path, "crucible_trio.apis"):
        assert name == "crucible_trio.apis" or any(f"{name}.".startswith(f"{package}.") for package in allowed), name


def test_the_chat_responses_and_models_apis_do_not_import_each_other() -> None:
    names = {"chat", "responses", "models"}
    for name in names:
        others = [f"crucible_trio.apis.openai.{other}" for other in names - {name}]
        for path in (ROOT / "apis/openai" / name).rglob("*.py"):
            assert not imports_any(path, *others)


def test_only_the_kit_routes_and_web_import_quart() -> None:
    for path in ROOT.rglob("*.py"):
        parts = path.relative_to(ROOT).parts
        if parts[0] != "web" and parts[:2] != ("apis", "kit") and (parts[0] != "apis" or path.name != "routes.py"):
            assert not imports_any(path, "quart", "quart_trio"), path


def test_no_import_is_circular_not_even_for_annotations() -> None:
    files = {module_of(path).removesuffix(".__init__"): path for path in ROOT.rglob("*.py")}
    imports: dict[str, set[str]] = {}
    for name, path in files.items():
        found = {other for other in imports_of(path, for_annotations=True) if other in files}
        # `from package import module` needs the module. The package itself may import everything in it.
        imports[name] = {other for other in found if not any(more.startswith(f"{other}.") for more in found)}
    while imports:
        leaves = [name for name, others in imports.items() if not others & imports.keys()]
        assert leaves, f"a cycle among {sorted(imports)}"
        for name in leaves:
            del imports[name]
