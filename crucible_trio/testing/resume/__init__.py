"""The resume kit: cuts a server's event stream at every byte, reconnects as its clients do, and compares.

For any server whose streams can be resumed with `Last-Event-ID`; docs/howto/check.md.
"""

from crucible_trio.testing.resume.check import check
from crucible_trio.testing.resume.clients import CLIENTS
from crucible_trio.testing.resume.judging import Finding
from crucible_trio.testing.resume.report import Failure, Report, Row
from crucible_trio.testing.resume.stage import Stage
from crucible_trio.testing.resume.wire import Wire, load_wire

__all__ = ["CLIENTS", "Failure", "Finding", "Report", "Row", "Stage", "Wire", "check", "load_wire"]
