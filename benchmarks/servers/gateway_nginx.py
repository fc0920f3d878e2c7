"""nginx as a gateway, without buffering: it copies bytes, parses nothing and keeps no log. Prints its port first."""

from __future__ import annotations

import os
import socket
import sys
import tempfile
from pathlib import Path
from urllib.parse import urlsplit

_CONFIG = """
daemon off;
master_process off;
pid {folder}/nginx.pid;
error_log stderr error;
worker_rlimit_nofile 8192;
events {{ worker_connections 4096; }}
http {{
    access_log off;
    client_body_temp_path {folder};
    proxy_temp_path {folder};
    fastcgi_temp_path {folder};
    uwsgi_temp_path {folder};
    scgi_temp_path {folder};
    upstream model {{ server {upstream}; keepalive 512; }}
    server {{
        listen 127.0.0.1:{port} backlog=2048;
        location / {{
            proxy_pass http://model;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_buffering off;
            proxy_read_timeout 1h;
        }}
    }}
}}
"""


def main() -> None:
    """Write the configuration, print the port, and become nginx."""
    folder = Path(tempfile.mkdtemp(prefix="bench-nginx-"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = folder / "nginx.conf"
    config.write_text(_CONFIG.format(folder=folder, port=port, upstream=urlsplit(sys.argv[1]).netloc))
    print(port, flush=True)
    os.execlp("nginx", "nginx", "-c", str(config), "-p", str(folder), "-e", "stderr")


if __name__ == "__main__":
    main()
