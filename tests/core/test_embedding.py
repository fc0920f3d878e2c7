import subprocess
import sys
from pathlib import Path

import crucible_trio

PACKAGE = Path(crucible_trio.__file__).parent
CORE_FILES = [*PACKAGE.glob("*.py"), *PACKAGE.glob("log/*.py"), *PACKAGE.glob("store/*.py")]


def test_the_core_imports_no_web_library() -> None:
    modules = {".".join(path.relative_to(PACKAGE).with_suffix("").parts) for path in CORE_FILES}
    assert {"pipeline", "log.memory", "store.memory"} <= modules
    imports = "; ".join(f"import crucible_trio.{module}" for module in sorted(modules))
    program = f"{imports}; import sys; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    loaded = {name.partition(".")[0] for name in run.stdout.split()}
    assert {"trio", "crucible_trio"} <= loaded
    assert not loaded & {"quart", "quart_trio", "hypercorn", "httptools", "h11", "click", "rich", "prometheus_client"}


def test_a_program_embeds_the_pipeline_in_a_few_lines() -> None:
    program = """
import trio
from crucible_trio import OutputDelta, Request, open_pipeline

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


def test_everything_that_the_package_exports_can_be_imported_by_name() -> None:
    assert all(hasattr(crucible_trio, name) for name in crucible_trio.__all__)
    assert sorted(crucible_trio.__all__) == crucible_trio.__all__
