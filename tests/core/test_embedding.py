import subprocess
import sys

CORE = (
    "errors config sse records output recorder engine log timers clocks metrics snapshot reader endings stream"
    " idempotency retention pipeline"
)


def test_the_core_imports_no_web_library() -> None:
    imports = "; ".join(f"import crucible_trio.{module}" for module in CORE.split())
    program = f"{imports}; import sys; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    loaded = {name.partition(".")[0] for name in run.stdout.split()}
    assert {"trio", "crucible_trio"} <= loaded
    assert not loaded & {"quart", "quart_trio", "hypercorn", "httpx", "h11", "click", "rich"}


def test_a_program_embeds_the_pipeline_in_a_few_lines() -> None:
    program = """
import trio
from crucible_trio.engine import Request
from crucible_trio.pipeline import open_pipeline
from crucible_trio.records import OutputDelta

async def echo(request):
    for word in request.input.split():
        yield word

async def main():
    async with open_pipeline(echo) as pipeline:
        stream = await pipeline.start(Request("to be or not"))
        async with stream.attach() as reader:
            print("".join([record.delta async for record in reader if isinstance(record, OutputDelta)]))

trio.run(main)
"""
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    assert (run.stdout, run.stderr) == ("tobeornot\n", "")
