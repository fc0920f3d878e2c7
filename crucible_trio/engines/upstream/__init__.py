"""The engine for any OpenAI-compatible server: vLLM, llama.cpp, Ollama, OpenAI."""

from crucible_trio.engines.upstream.engine import THINKING, UpstreamEngine, open_upstream

__all__ = ["THINKING", "UpstreamEngine", "open_upstream"]
