"""The native API: docs/reference/protocol.md."""
