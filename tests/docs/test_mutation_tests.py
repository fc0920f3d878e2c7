"""The table of mutation tests fits the code, and docs/guarantees.md shows it."""

from __future__ import annotations

import re
from pathlib import Path

from tests.mutants.__main__ import ROOT, misfit
from tests.mutants.table import MUTANTS

GUARANTEES = Path(ROOT, "docs/guarantees.md")


def test_every_mutant_fits_the_code() -> None:
    assert [why for mutant in MUTANTS if (why := misfit(mutant, ROOT)) is not None] == []


def test_the_guarantees_list_every_mutant_with_the_test_that_fails() -> None:
    section = GUARANTEES.read_text().split("## Mutation tests")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (.+) \| `(tests/\S+\.py)::.+` \|$", section, flags=re.MULTILINE)
    assert [mechanism for mechanism, _ in rows] == [mutant.mechanism for mutant in MUTANTS]
    assert [path for _, path in rows if not Path(ROOT, path).is_file()] == []
