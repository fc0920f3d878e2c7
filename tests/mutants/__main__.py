"""Mutation tests: remove one mechanism at a time, and expect a test to fail. `make mutants`.

    python -m tests.mutants [--check] [WORD ...]

Each mutant edits a copy of the tree and runs the tests that must notice. A mutant that no test notices fails the run:
then the documentation promises something that no test proves.

With words, only the mutants whose mechanism or file contains one of them run. `--check` runs no tests: it only checks
that every edit still fits the code.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.mutants.table import MUTANTS, Mutant

ROOT = Path(__file__).resolve().parents[2]
# A mutant may make a test hang. On a busy machine, these tests take less than a tenth of this.
SECONDS = 300


def misfit(mutant: Mutant, tree: Path) -> str | None:
    """Why the edit cannot be made on a tree. None if it can."""
    path = tree / "crucible_trio" / mutant.file
    if not path.is_file():
        return f"{mutant.mechanism}: crucible_trio/{mutant.file} does not exist"
    if (count := path.read_text().count(mutant.old)) != 1:
        return f"{mutant.mechanism}: `old` occurs {count} times in crucible_trio/{mutant.file}"
    missing = [test for test in mutant.tests.split() if not (tree / test).exists()]
    return f"{mutant.mechanism}: {' '.join(missing)} does not exist" if missing else None


def run(mutant: Mutant, tree: Path) -> str | None:
    """Run the tests of a mutant. Returns the first test that fails, or None if all pass."""
    path = tree / "crucible_trio" / mutant.file
    original = path.read_text()
    path.write_text(original.replace(mutant.old, mutant.new))
    try:
        return first_failure(mutant.tests.split(), tree)
    finally:
        path.write_text(original)


def first_failure(tests: list[str], tree: Path) -> str | None:
    """Run tests on a tree until one fails. Returns its name, or None if all pass."""
    try:
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-x", "-q", "--tb=no", "-p", "no:cacheprovider", *tests],
            cwd=tree,
            env=os.environ | {"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"(the tests did not end within {SECONDS} s)"
    if done.returncode == 0:
        return None
    failed = [line for line in done.stdout.splitlines() if line.startswith("FAILED")]
    if not failed:
        sys.exit(f"pytest could not run the tests\n{done.stdout}{done.stderr}")
    return failed[0].removeprefix("FAILED ").partition(" - ")[0]


def main() -> None:
    """Run the mutants and print a table. Exit code 1 if a mutant does not fit or no test notices it."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description="Run the mutation tests.")
    parser.add_argument("words", nargs="*", metavar="WORD", help="of the mechanism or the file (default: all mutants)")
    parser.add_argument("--check", action="store_true", help="only check that every edit still fits the code")
    arguments = parser.parse_args()
    words = arguments.words or [""]
    mutants = [each for each in MUTANTS if any(word in f"{each.mechanism} {each.file}" for word in words)]
    if misfits := [why for each in mutants if (why := misfit(each, ROOT)) is not None]:
        sys.exit("\n".join(["the code has changed: update tests/mutants/table.py", *misfits]))
    if arguments.check:
        return
    unnoticed = 0
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder)
        for name in ("crucible_trio", "tests"):
            shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", tree)
        tests = {test for each in mutants for test in each.tests.split()}
        if (failed := first_failure(sorted(tests), tree)) is not None:
            sys.exit(f"{failed} fails on the original code")
        for mutant in mutants:
            failed = run(mutant, tree)
            unnoticed += failed is None
            print(f"| {mutant.mechanism} | {f'`{failed}`' if failed else '**no test**'} |", flush=True)
    print(f"{len(mutants)} mutants, {unnoticed} of them not noticed by a test")
    sys.exit(1 if unnoticed else 0)


if __name__ == "__main__":
    main()
