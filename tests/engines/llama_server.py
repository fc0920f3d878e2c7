"""A program that runs llama.cpp's HTTP server, which is part of xllamacpp.

Argument: the path of the weights. Prints the base URL and runs until standard input ends, so it never outlives its
parent process.
"""

from __future__ import annotations

import os
import sys

os.environ["OMP_WAIT_POLICY"] = "passive"  # before the import: spinning threads starve a small machine

import xllamacpp

# SmolLM2 was not trained to reason. This template opens the tag in a form that llama.cpp recognises as reasoning, and a
# budget in the request closes the tag. Together they make the model emit a trace.
TEMPLATE = """\
{%- for m in messages %}
{{- '<|im_start|>' + m.role + '\\n' }}
{%- if m.role == 'assistant' and m.reasoning_content %}
{{- '<think>\\n' + m.reasoning_content + '\\n</think>\\n\\n' }}
{%- endif %}
{{- m.content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\\n' }}
{%- if enable_thinking is defined and enable_thinking is false %}
{{- '<think>\\n\\n</think>\\n\\n' }}
{%- else %}
{{- '<think>\\n' }}
{%- endif %}
{%- endif %}"""


def main() -> None:
    params = xllamacpp.CommonParams()
    params.model.path = sys.argv[1]
    params.model_alias = {"smollm2"}
    params.chat_template = TEMPLATE
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.n_parallel = 1
    params.n_ctx = 1024
    params.cache_ram_mib = 0
    params.cpuparams.n_threads = 1
    params.cpuparams_batch.n_threads = 1
    params.endpoint_slots = True
    params.verbosity = 0
    server = xllamacpp.Server(params)
    print(f"{server.listening_address}/v1", flush=True)
    sys.stdin.read()
    os._exit(0)  # immediately, even during a generation: the process has nothing to save


if __name__ == "__main__":
    main()
