"""The engine for any OpenAI-compatible server: vLLM, llama.cpp, Ollama, OpenAI."""

from crucible_trio.engines.upstream.capabilities import UPSTREAM_CAPABILITIES, capabilities_within
from crucible_trio.engines.upstream.engine import THINKING, UpstreamEngine, open_upstream

__all__ = ["THINKING", "UPSTREAM_CAPABILITIES", "UpstreamEngine", "capabilities_within", "open_upstream"]
