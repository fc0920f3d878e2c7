"""What a test needs of a model and of a network: an engine that follows a script, and a proxy that cuts at any byte.

For the tests of this package and for those of programs that use it. Nothing here knows pytest.
"""

from crucible_trio.testing.chaos import ChaosConnection, ChaosProxy, Outcome, open_chaos_proxy
from crucible_trio.testing.scripted import (
    End,
    Gate,
    Queued,
    Repeat,
    Run,
    ScriptedEngine,
    Step,
    interrupted,
    split_text,
)
from crucible_trio.testing.treatments import CUTS, UNTOUCHED, Chaos, Cut, EveryByte, RandomChaos, Treatment

__all__ = [
    "CUTS",
    "UNTOUCHED",
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
