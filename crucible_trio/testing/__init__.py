"""Tools for tests of streaming: an engine that follows a script, and a proxy that cuts connections at any byte.

They serve the tests of this package and of programs that use it, and do not depend on pytest.
"""

from crucible_trio.testing.chaos import ChaosConnection, ChaosProxy, Outcome, open_chaos_proxy
from crucible_trio.testing.script import CallTool, Gate, Queued, Repeat, Step, interrupted, split_text
from crucible_trio.testing.scripted import End, Run, ScriptedEngine
from crucible_trio.testing.treatments import CUTS, UNTOUCHED, Chaos, Cut, EveryByte, RandomChaos, Treatment

__all__ = [
    "CUTS",
    "UNTOUCHED",
    "CallTool",
    "Chaos",
    "ChaosConnection",
    "ChaosProxy",
    "Cut",
    "End",
    "EveryByte",
    "Gate",
    "Outcome",
    "Queued",
    "RandomChaos",
    "Repeat",
    "Run",
    "ScriptedEngine",
    "Step",
    "Treatment",
    "interrupted",
    "open_chaos_proxy",
    "split_text",
]
