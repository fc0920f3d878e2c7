"""`crucible serve --base-url`, of any version: prints a port, then becomes the command on that port.

It runs by its path, so that `crucible_trio` is that of the checkout in PYTHONPATH.
"""

from __future__ import annotations

import socket
import sys

from crucible_trio.cli import main

if __name__ == "__main__":
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    print(port, flush=True)
    main(["serve", "--base-url", sys.argv[1], "--model", "benchmark", "--bind", f"127.0.0.1:{port}"])
