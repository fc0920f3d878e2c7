"""LiteLLM's proxy as the client: the openai package asks the proxy, which asks this server. A driver."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import drive_openai
from driver import main, read_calls

KEY = "sk-scripted"
START_SECONDS = 120  # only a proxy that does not start takes this long


class Proxied(drive_openai.OnAsyncio):
    url = ""
    key = KEY


class Chat(Proxied, drive_openai.Chat):
    pass


class Responses(Proxied, drive_openai.Responses):
    pass


@contextlib.contextmanager
def proxy(upstream_url: str, model: str) -> Iterator[str]:
    """Run the proxy in front of a server. Gives its base URL."""
    parameters = {"model": f"openai/{model}", "api_base": upstream_url, "api_key": "none"}
    settings = {"model_list": [{"model_name": model, "litellm_params": parameters}]}
    config = Path.home() / "proxy.yaml"
    config.write_text(json.dumps(settings))  # JSON is YAML
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [str(Path(sys.executable).with_name("litellm")), "--config", str(config), "--host", "127.0.0.1"]
    environment = os.environ | {"LITELLM_MASTER_KEY": KEY}
    process = subprocess.Popen([*command, "--port", str(port)], env=environment, stdout=sys.stderr)
    try:
        end = time.monotonic() + START_SECONDS
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health/liveliness").close()
                break
            except OSError:
                if process.poll() is not None or time.monotonic() > end:
                    raise
                time.sleep(0.1)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.kill()
        process.wait()


if __name__ == "__main__":
    calls = read_calls()
    with proxy(calls[0].url, calls[0].model) as Proxied.url:
        main({"LiteLLM proxy, chat": Chat, "LiteLLM proxy, responses": Responses}, calls)
