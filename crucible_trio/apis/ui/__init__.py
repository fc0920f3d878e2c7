"""The AI SDK's UI message stream, which `useChat` reads. docs/reference/protocol.md describes it."""
