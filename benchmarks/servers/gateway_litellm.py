"""LiteLLM's proxy, from an environment of its own: prints its port, then becomes the command on that port.

`make bench` installs it into `.venv-litellm`, because it pins the versions of packages that others here need too.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import tempfile
from pathlib import Path

PROGRAM = Path(__file__).parent.parent.parent / ".venv-litellm" / "bin" / "litellm"


def main() -> None:
    """Write the configuration, print the port, and become LiteLLM."""
    folder = Path(tempfile.mkdtemp(prefix="bench-litellm-"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    parameters = {"model": "openai/benchmark", "api_base": sys.argv[1], "api_key": "none"}
    config = folder / "config.yaml"  # JSON is YAML
    config.write_text(json.dumps({"model_list": [{"model_name": "benchmark", "litellm_params": parameters}]}))
    os.environ |= {
        "HOME": str(folder),
        # Nothing is sent to other hosts: no telemetry, and the local table of prices.
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "LITELLM_TELEMETRY": "False",
        # The other gateways have no keys either.
        "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true",
    }
    print(port, flush=True)
    options = ("--config", str(config), "--host", "127.0.0.1", "--port", str(port), "--num_workers", "1")
    os.execv(PROGRAM, (str(PROGRAM), *options))


if __name__ == "__main__":
    main()
