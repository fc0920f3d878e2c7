"""A lean HTTP/1.1 client on trio, for responses that stream for a long time. One client has one server."""

from crucible_trio.http.client import HttpClient, open_http_client
from crucible_trio.http.connect import Connect
from crucible_trio.http.errors import (
    ConnectFailedError,
    ConnectionLostError,
    ConnectTimeoutError,
    HttpError,
    InvalidResponseError,
)
from crucible_trio.http.headers import Headers
from crucible_trio.http.response import BodySink, HttpResponse
from crucible_trio.http.url import Url, parse_url

__all__ = [
    "BodySink",
    "Connect",
    "ConnectFailedError",
    "ConnectTimeoutError",
    "ConnectionLostError",
    "Headers",
    "HttpClient",
    "HttpError",
    "HttpResponse",
    "InvalidResponseError",
    "Url",
    "open_http_client",
    "parse_url",
]
