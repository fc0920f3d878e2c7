"""TLS with the system's certificates, or with those that the environment names."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from pathlib import Path

import trio

from crucible_trio.errors import ConfigError


def make_ssl_context(environment: Mapping[str, str]) -> ssl.SSLContext:
    """The TLS settings of a client.

    Args:
        environment: `SSL_CERT_FILE` (a file of certificates in PEM) and `SSL_CERT_DIR` (a folder that `c_rehash` made)
            take the place of the system's certificates, as in OpenSSL.

    Raises:
        ConfigError: The file or the folder cannot be read.
    """
    file, folder = (environment.get(name) or None for name in ("SSL_CERT_FILE", "SSL_CERT_DIR"))
    if folder is not None and not Path(folder).is_dir():
        message = f"SSL_CERT_DIR names {folder}, which is not a folder: correct or unset it"
        raise ConfigError(message)
    try:
        if file is None and folder is None:
            context = ssl.create_default_context()
        else:
            context = ssl.create_default_context(cafile=file, capath=folder)
    except (OSError, ValueError) as error:  # `ssl.SSLError` is an OSError
        message = f"SSL_CERT_FILE names {file}, which cannot be read as a file of certificates: correct or unset it"
        raise ConfigError(message) from error
    context.set_alpn_protocols(["http/1.1"])
    return context


async def start_tls(stream: trio.abc.Stream, host: str, context: ssl.SSLContext) -> trio.abc.Stream:
    """Start TLS on a connection, and check that its certificate is the host's. Closes the connection on failure.

    Raises:
        trio.BrokenResourceError: The handshake failed.

    Cancellation: closes the connection.
    """
    tls = trio.SSLStream(stream, context, server_hostname=host, https_compatible=True)
    try:
        await tls.do_handshake()
    except BaseException:
        await trio.aclose_forcefully(stream)
        raise
    return tls
