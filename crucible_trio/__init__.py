"""Streams a reasoning model's output over Server-Sent Events: resumable, with backpressure, on trio.

Everything exported here runs without the web. Import the rest by name: `crucible_trio.web`, `crucible_trio.server`,
`crucible_trio.client`, `crucible_trio.engines`.
"""

from crucible_trio.config import Settings
from crucible_trio.content import Reasoning, Refusal, Text, ToolCallArguments, ToolCallEnd, ToolCallStart
from crucible_trio.engine import Capabilities, Engine, EngineInfo, Finish
from crucible_trio.errors import CrucibleError, EngineError
from crucible_trio.metrics import EngineMetrics, Histogram, Metrics
from crucible_trio.output import Output, ToolCallOutput
from crucible_trio.pipeline import Pipeline, open_pipeline
from crucible_trio.reader import Reader
from crucible_trio.records import (
    AnyRecord,
    ErrorInfo,
    OutputDelta,
    ReasoningDelta,
    ReasoningDone,
    RefusalDelta,
    StreamCancelled,
    StreamCompleted,
    StreamContinued,
    StreamCreated,
    StreamFailed,
    StreamIncomplete,
    Timings,
    ToolCallDelta,
    ToolCallDone,
    ToolCallStarted,
    UpstreamFields,
    Usage,
)
from crucible_trio.request import (
    AudioPart,
    Deadlines,
    FilePart,
    ImagePart,
    JsonObjectFormat,
    JsonSchemaFormat,
    Message,
    NamedTool,
    Parameters,
    Request,
    Sampling,
    TextFormat,
    TextPart,
    Tool,
    ToolCall,
)
from crucible_trio.snapshot import Snapshot, SnapshotToolCall
from crucible_trio.stream import Stream, StreamFacts

__all__ = [
    "AnyRecord",
    "AudioPart",
    "Capabilities",
    "CrucibleError",
    "Deadlines",
    "Engine",
    "EngineError",
    "EngineInfo",
    "EngineMetrics",
    "ErrorInfo",
    "FilePart",
    "Finish",
    "Histogram",
    "ImagePart",
    "JsonObjectFormat",
    "JsonSchemaFormat",
    "Message",
    "Metrics",
    "NamedTool",
    "Output",
    "OutputDelta",
    "Parameters",
    "Pipeline",
    "Reader",
    "Reasoning",
    "ReasoningDelta",
    "ReasoningDone",
    "Refusal",
    "RefusalDelta",
    "Request",
    "Sampling",
    "Settings",
    "Snapshot",
    "SnapshotToolCall",
    "Stream",
    "StreamCancelled",
    "StreamCompleted",
    "StreamContinued",
    "StreamCreated",
    "StreamFacts",
    "StreamFailed",
    "StreamIncomplete",
    "Text",
    "TextFormat",
    "TextPart",
    "Timings",
    "Tool",
    "ToolCall",
    "ToolCallArguments",
    "ToolCallDelta",
    "ToolCallDone",
    "ToolCallEnd",
    "ToolCallOutput",
    "ToolCallStart",
    "ToolCallStarted",
    "UpstreamFields",
    "Usage",
    "open_pipeline",
]
