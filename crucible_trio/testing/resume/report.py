"""The report of a check: its scope, its findings, and how to repeat a failure."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
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
    """A finding, and the cut that led to it.

    Attributes:
        phase: The phase, or `uncut` for a fault that the uncut reader met.
        client: The client's name. Empty for the uncut reader.
        cut_at: Number of bytes after which the connection was cut. None for no cut.
        finding: The fault.
        servers: The servers that the client's connections reached, in order.
    """

    phase: Phase | Literal["uncut"]
    client: str
    cut_at: int | None
    finding: Finding
    servers: tuple[str, ...] = ()


@final
@dataclass(slots=True)
class Row:
    """One client in one phase.

    Attributes:
        phase: From the log, or live.
        client: The client's name.
        size: Bytes of the uncut response.
        planned: Number of cuts to make.
        checked: Number of cuts that were judged.
        failed: Number of judged cuts with a fault.
        skipped: Number of cuts that could not be judged, by reason.
        in_gap: Number of cuts in the client's own gap: the real client loses an event there and the kit's does not.
        by_ids_only: Number of cuts without an uncut reader to compare with, so that only the ids were checked.
        stopped: Whether the rest was skipped after too many failures.
        connections: Number of connections of the judged cuts, by server.
    """

    phase: Phase
    client: str
    size: int = 0
    planned: int = 0
    checked: int = 0
    failed: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    in_gap: int = 0
    by_ids_only: int = 0
    stopped: bool = False
    connections: Counter[str] = field(default_factory=Counter)


@final
@dataclass(slots=True)
class Report:
    """The result of a check. `str(report)` is readable text.

    Attributes:
        target: The server's URL or URLs, or the application's name.
        seed: The seed that selected the bytes, if not every byte was cut.
        again: The command line that makes the check, without the options that select cuts. Empty if there is none.
        problem: Why the server could not be checked, or None.
        stream: A short description of the stream that was cut.
        rows: One row per client and phase.
        failures: All failures.
        notes: Checks that were left out, and why.
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
        """Whether cuts were checked and no fault was found."""
        return self.exit_code == PASSED

    @property
    def exit_code(self) -> int:
        """0: passed, 1: failed, 2: could not check."""
        if self.failures:
            return FAILED
        return NOT_CHECKED if self.problem is not None or not any(row.checked for row in self.rows) else PASSED

    @property
    def names(self) -> Counter[str]:
        """Number of failures by name of the fault."""
        return Counter(failure.finding.name for failure in self.failures)

    def __str__(self) -> str:
        lines = [f"checked {self.target} (seed {self.seed})"]
        if self.stream:
            lines.append(f"the stream: {self.stream}")
        lines += [_row_line(row) for row in self.rows]
        connections = sum((row.connections for row in self.rows), Counter[str]())
        if len(connections) > 1:
            counts = ", ".join(f"{count:,} to {server}" for server, count in sorted(connections.items()))
            lines.append(f"connections: {counts}")
        lines += [f"note: {note}" for note in self.notes]
        shown: Counter[str] = Counter()
        for failure in self.failures:
            name = failure.finding.name
            shown[name] += 1
            if shown[name] <= _SHOWN_OF_A_NAME:
                lines += ["", *self._failure_lines(failure)]
        if more := sum((shown - Counter(dict.fromkeys(shown, _SHOWN_OF_A_NAME))).values()):
            lines += ["", f"and {more} more failures with these names"]
        lines.append("")
        match self.exit_code:
            case 0:
                lines.append("passed: no event was lost or repeated")
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
        if len(set(failure.servers)) > 1:
            lines.append(f"     connections: {', '.join(failure.servers)}")
        if failure.cut_at is None:
            lines.append("     in: the uncut reader" + (f", {_PHASES[failure.phase]}" * (failure.phase != "uncut")))
        elif self.again:
            lines.append(
                f"     repeat: {self.again} --phase {failure.phase} --client {failure.client} --cut {failure.cut_at} "
                f"--seed {self.seed}"
            )
        else:
            lines.append(
                f"     repeat: check(..., phases=['{failure.phase}'], clients=['{failure.client}'], "
                f"cuts=[{failure.cut_at}], seed={self.seed})"
            )
        return lines


def command_again(urls: Sequence[str], wire_file: Path | None) -> str:
    """The command that checks these URLs, without the options that select cuts.

    The key is not in it, because the command also takes the key from the environment.
    """
    words = ["crucible", "check", *urls]
    if wire_file is not None:
        words += ["--wire", str(wire_file)]
    return shlex.join(words)


def _row_line(row: Row) -> str:
    cuts = (
        f"{row.checked:,} cut{'s' * (row.checked != 1)}"
        if row.checked != row.size + 1
        else f"every byte of {row.size:,}"
    )
    parts = [f"{_PHASES[row.phase]:<12}  {row.client:<11}  {cuts}"]
    parts.append(f"{row.failed:,} failed" if row.failed else "ok" if row.checked else "nothing judged")
    if row.stopped:
        parts.append(f"{row.planned - row.checked - row.skipped.total():,} skipped after too many failures")
    parts += [f"{count:,} not judged ({why})" for why, count in row.skipped.items()]
    if row.in_gap:
        parts.append(f"{row.in_gap:,} in the client's own gap")
    if row.by_ids_only:
        parts.append(f"{row.by_ids_only:,} checked by ids only")
    return ", ".join(parts)
