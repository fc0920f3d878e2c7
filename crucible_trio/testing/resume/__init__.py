"""The resume kit: cuts a server's event stream at every byte, reconnects as real clients do, and compares the results.

It works with any server whose streams can be resumed with `Last-Event-ID`. See docs/howto/check.md.
"""

from crucible_trio.testing.resume.check import check
from crucible_trio.testing.resume.clients import CLIENTS
from crucible_trio.testing.resume.judging import Finding
from crucible_trio.testing.resume.report import Failure, Report, Row, command_again
from crucible_trio.testing.resume.stage import Stage
from crucible_trio.testing.resume.wire import WireFormat, load_wire
from crucible_trio.testing.resume.wires import WIRES, find_wire

__all__ = [
    "CLIENTS",
    "WIRES",
    "Failure",
    "Finding",
    "Report",
    "Row",
    "Stage",
    "WireFormat",
    "check",
    "command_again",
    "find_wire",
    "load_wire",
]
