"""A reconnecting client for trio."""

from crucible_trio.client.client import Client, open_client
from crucible_trio.client.stream import ClientStream

__all__ = ["Client", "ClientStream", "open_client"]
