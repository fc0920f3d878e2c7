"""What was checked, what was found, and how to see a failure again."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias, final

from crucible_trio.testing.resume.judging import Finding, ascii_controls

Phase: TypeAlias = Literal["log", "live"]

PASSED: Final = 0
FAILED: Final = 1
NOT_CHECKED: Final = 2

_PHASES: Final[dict[str, str]] = {"uncut": "uncut", "log": "from the log", "live": "live"}
_SHOWN_OF_A_NAME: Final = 2


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A finding and where it was made.

    Attributes:
        phase: `uncut` when the uncut reader itself met it.
        client: The client's name; empty for the uncut reader.
        cut_at: Bytes of the response after which the connection was cut; None for no cut.
        finding: What is wrong.
    """

    phase: Phase | Literal["uncut"]
    client: str
    cut_at: int | None
    finding: Finding


@final
@dataclass(slots=True)
class Row:
    """One client in one phase.

    Attributes:
        phase: From the log, or live.
        client: The client's name.
        size: Bytes of the response that is cut.
        planned: Cuts that were to be made.
        checked: Cuts whose outcome was judged.
        failed: How many of these were wrong.
        skipped: Cuts that could not be judged, by why.
        favoured: Cuts after which the client was given an event that its original loses by itself.
        unmeasured: Cuts where no uncut reader could be had, so that ids alone were looked at.
        stopped: Whether so many failed that the rest was left out.
    """

    phase: Phase
    client: str
    size: int = 0
    planned: int = 0
    checked: int = 0
    failed: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    favoured: int = 0
    unmeasured: int = 0
    stopped: bool = False


@final
@dataclass(slots=True)
class Report:
    """The outcome of a check; `str(report)` is for people.

    Attributes:
        target: What was checked.
        seed: What picked the cuts, where not every byte was cut.
        again: The command that checks it; empty for an application in this process.
        problem: Why nothing could be checked; None when it could.
        stream: The stream that was cut, in a few words.
        rows: By phase and client.
        failures: All that were kept; `Row.failed` counts.
        notes: What was not checked, and why.
    """

    target: str
    seed: int = 0
    again: str = ""
    problem: str | None = None
    stream: str = ""
    rows: list[Row] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether something was checked and nothing was wrong."""
        return self.exit_code == PASSED

    @property
    def exit_code(self) -> int:
        """0: passed, 1: failed, 2: could not check."""
        if self.failures:
            return FAILED
        return NOT_CHECKED if self.problem is not None or not any(row.checked for row in self.rows) else PASSED

    @property
    def names(self) -> Counter[str]:
        """How often each kind of fault was kept."""
        return Counter(failure.finding.name for failure in self.failures)

    def __str__(self) -> str:
        lines = [f"checked {self.target} (seed {self.seed})"]
        if self.stream:
            lines.append(f"the stream: {self.stream}")
        lines += [_row_line(row) for row in self.rows]
        lines += [f"note: {note}" for note in self.notes]
        shown: Counter[str] = Counter()
        for failure in self.failures:
            name = failure.finding.name
            shown[name] += 1
            if shown[name] <= _SHOWN_OF_A_NAME:
                lines += ["", *self._failure_lines(failure)]
        if more := sum((shown - Counter(dict.fromkeys(shown, _SHOWN_OF_A_NAME))).values()):
            lines += ["", f"and {more} more of the same names"]
        lines.append("")
        match self.exit_code:
            case 0:
                lines.append("passed: nothing lost, nothing twice")
            case 1:
                counts = ", ".join(f"{name} ({count})" for name, count in self.names.most_common())
                lines.append(f"FAILED: {counts}")
            case _:
                lines.append(f"could not check: {self.problem or 'no cut could be judged'}")
        return "\n".join(lines)

    def _failure_lines(self, failure: Failure) -> list[str]:
        finding = failure.finding
        lines = [f"FAIL {finding.name}: {ascii_controls(finding.message)}"]
        lines += [f"     {line}" for line in finding.difference.splitlines()]
        if failure.cut_at is None:
            lines.append("     where: the uncut reader" + (f", {_PHASES[failure.phase]}" * (failure.phase != "uncut")))
        elif self.again:
            lines.append(
                f"     again: {self.again} --phase {failure.phase} --client {failure.client} --cut {failure.cut_at} "
                f"--seed {self.seed}"
            )
        else:
            lines.append(
                f"     again: check(..., phases=['{failure.phase}'], clients=['{failure.client}'], "
                f"cuts=[{failure.cut_at}], seed={self.seed})"
            )
        return lines


def _row_line(row: Row) -> str:
    cuts = (
        f"{row.checked:,} cut{'s' * (row.checked != 1)}"
        if row.checked != row.size + 1
        else f"every byte of {row.size:,}"
    )
    parts = [f"{_PHASES[row.phase]:<12}  {row.client:<11}  {cuts}"]
    parts.append(f"{row.failed:,} failed" if row.failed else "ok" if row.checked else "nothing judged")
    if row.stopped:
        parts.append(f"{row.planned - row.checked - row.skipped.total():,} left out after so many")
    parts += [f"{count:,} not judged ({why})" for why, count in row.skipped.items()]
    if row.favoured:
        parts.append(f"{row.favoured:,} with the client's own gap closed")
    if row.unmeasured:
        parts.append(f"{row.unmeasured:,} by ids alone")
    return ", ".join(parts)
