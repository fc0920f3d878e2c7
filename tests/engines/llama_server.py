"""Run llama.cpp's own HTTP server, which xllamacpp brings along, as a process of its own.

Arguments: the weights. Prints the base URL and runs until its standard input ends, so it never outlives who started it.
"""

from __future__ import annotations

import os
import sys

os.environ["OMP_WAIT_POLICY"] = "passive"  # before the import: a spinning barrier starves everybody on a small machine

import xllamacpp

# SmolLM2 was not trained to reason. A template that opens the tag, in a form that llama.cpp knows reasoning by, and a
# budget in the request that closes it make it emit a trace all the same.
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
    os._exit(0)  # nothing to save, and a generation may be under way


if __name__ == "__main__":
    main()
