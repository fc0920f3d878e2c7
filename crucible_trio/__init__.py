"""Streams a reasoning model's output over Server-Sent Events: resumable, with backpressure, on trio.

What is exported here runs without the web. The rest is imported by name: `crucible_trio.web`, `crucible_trio.server`,
`crucible_trio.client`, `crucible_trio.engines`.
"""

from crucible_trio.config import Settings, load_settings
from crucible_trio.engine import (
    Deadlines,
    Engine,
    EngineInfo,
    Finish,
    Message,
    Reasoning,
    Request,
    Sampling,
)
from crucible_trio.errors import CrucibleError, EngineError
from crucible_trio.output import Output
from crucible_trio.pipeline import Pipeline, open_pipeline
from crucible_trio.reader import Reader
from crucible_trio.records import (
    AnyRecord,
    OutputDelta,
    ReasoningDelta,
    ReasoningDone,
    StreamCancelled,
    StreamCompleted,
    StreamCreated,
    StreamFailed,
    StreamIncomplete,
    Usage,
)
from crucible_trio.stream import Stream

__all__ = [
    "AnyRecord",
    "CrucibleError",
    "Deadlines",
    "Engine",
    "EngineError",
    "EngineInfo",
    "Finish",
    "Message",
    "Output",
    "OutputDelta",
    "Pipeline",
    "Reader",
    "Reasoning",
    "ReasoningDelta",
    "ReasoningDone",
    "Request",
    "Sampling",
    "Settings",
    "Stream",
    "StreamCancelled",
    "StreamCompleted",
    "StreamCreated",
    "StreamFailed",
    "StreamIncomplete",
    "Usage",
    "load_settings",
    "open_pipeline",
]
