"""redis-server with its files in the folder of the last argument, as docs/howto/redis.md recommends. Prints its port.

`appendonly yes` and `appendfsync everysec`, so the figures include the cost of the file.
"""

from __future__ import annotations

import os
import socket
import sys


def main() -> None:
    """Print the port, and become redis-server."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    print(port, flush=True)
    options = {"port": str(port), "bind": "127.0.0.1", "dir": sys.argv[1], "save": "", "loglevel": "warning"}
    options |= {"appendonly": "yes", "appendfsync": "everysec"}
    os.execlp(
        "redis-server", "redis-server", *(word for name, value in options.items() for word in (f"--{name}", value))
    )


if __name__ == "__main__":
    main()
