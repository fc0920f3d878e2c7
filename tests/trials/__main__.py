"""Remove one mechanism at a time and see a test fail: `make trials`.

Each trial edits a copy of the tree and runs the tests that should notice. A trial that no test notices fails the run:
then a promise stands in the documentation and nowhere else.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# A trial may make a test hang; no test of these takes a tenth of this on a busy machine.
SECONDS = 300


@dataclass(frozen=True)
class Trial:
    """One mechanism, and how to take it away: `old`, which stands in `file` once, becomes `new`."""

    mechanism: str
    file: str
    old: str
    new: str
    tests: str


TRIALS = [
    Trial(
        "the last batch is kept when the channel ends behind it",
        "stream.py",
        "        except (trio.WouldBlock, trio.EndOfChannel):\n",
        "        except trio.EndOfChannel:\n            return []\n        except trio.WouldBlock:\n",
        "tests/core",
    ),
    Trial(
        "the buffer is drained when a stream is stopped",
        "stream.py",
        "rest = self._take_nowait(inf)",
        "rest: list[Token] = []",
        "tests/core/test_cancellation.py tests/core/test_ends.py",
    ),
    Trial(
        "the terminal record needs no room",
        "stream.py",
        "        if self._ending is not None:\n            self._finish()",
        "        if self._ending is not None and self._has_room:\n            self._finish()",
        "tests/core",
    ),
    Trial(
        "room: a running engine waits for its furthest reader",
        "log.py",
        "            return self._furthest >= len(self._frames)",
        "            return True",
        "tests/core/test_backpressure.py",
    ),
    Trial(
        "the id is the last line of an event",
        "sse.py",
        'b"data: %b\\nid: %b\\n\\n" % (data, event_id.encode())',
        'b"id: %b\\ndata: %b\\n\\n" % (event_id.encode(), data)',
        "tests/web/test_framing.py tests/core/test_records.py",
    ),
    Trial(
        "the cursor moves when the write has returned, not when the record was read",
        "apis/kit/body.py",
        "            if events := self._dialect.feed(self._reader.take(MESSAGE_BYTES)):\n",
        "            events = self._dialect.feed(self._reader.take(MESSAGE_BYTES))\n"
        "            self._reader.passed(self._reader.taken)\n"
        "            if events:\n",
        "tests/web",
    ),
    Trial(
        "the engine is called when a reader has record 1",
        "stream.py",
        "            if self._waits_for_reader:\n"
        "                await self.log.wait_read(1)\n"
        "            if self._ending",
        "            if self._ending",
        "tests/core tests/server/test_promises.py",
    ),
    Trial(
        "a stopped stream cancels its engine",
        "stream.py",
        "            self._stopped_at = trio.current_time()\n            self._scope.cancel()",
        "            self._stopped_at = trio.current_time()",
        "tests/core/test_cancellation.py",
    ),
    Trial(
        "what comes alone passes nothing that waits",
        "pacing.py",
        "        if self._waiting or perf",
        "        if perf",
        "tests/core/test_backpressure.py",
    ),
    Trial(
        "a burst is left in the buffer and merged",
        "output.py",
        "        is_first = self._pass != self._pacing.passes\n",
        "        is_first = True\n",
        "tests/core/test_backpressure.py",
    ),
    Trial(
        "an engine that never waits lets others run",
        "output.py",
        "        if not is_first and self._pacing.is_over(self._pieces):",
        "        if False:",
        "tests/core/test_output.py",
    ),
    Trial(
        "a piece that waits for a reader ends the wait for the engine",
        "stream.py",
        "        self._clocks.token_came()  # whoever",
        "        # whoever",
        "tests/core/test_backpressure.py tests/core/test_deadlines.py",
    ),
    Trial(
        "an engine's error stays in its stream",
        "stream.py",
        "        except* Exception as group:  # a Cancelled",
        "        except* ZeroDivisionError as group:  # a Cancelled",
        "tests/core/test_isolation.py",
    ),
    Trial(
        "a stream is its owner's",
        "pipeline.py",
        "if owner not in {None, stream.owner} or stream in self._forgotten:",
        "if stream in self._forgotten:",
        "tests/core/test_pipeline.py tests/web/test_ownership.py",
    ),
    Trial(
        "an idempotency key finds the stream that it started",
        "pipeline.py",
        "            self._keys.enter(owner, key, request, stream.id)\n",
        "            pass\n",
        "tests/core/test_idempotency.py",
    ),
    Trial(
        "the cursor waits for what the server holds of a direct write",
        "apis/kit/direct.py",
        "        if events and not self._write(events):\n            return before\n",
        "        if events:\n            self._write(events)\n",
        "tests/web/test_direct_writes.py",
    ),
    Trial(
        "what is left of a direct write goes out first",
        "server/connection.py",
        "memoryview(self._unsent + data)",
        "memoryview(data + self._unsent)",
        "tests/server/test_direct_writes.py",
    ),
    Trial(
        "nothing is written past a `send` that waits",
        "server/connection.py",
        "            and not self._writers\n",
        "",
        "tests/server/test_direct_writes.py",
    ),
    Trial(
        "a direct write goes into its own response alone",
        "server/connection.py",
        "            protocol.stream is request\n            and not self._unsent",
        "            not self._unsent",
        "tests/server/test_direct_writes.py",
    ),
    Trial(
        "every write has a deadline",
        "server/connection.py",
        "with trio.fail_after(self._config.write_timeout):",
        "if True:",
        "tests/server/test_stalls.py",
    ),
    Trial(
        "nothing follows a write that was cut short",
        "server/connection.py",
        "                self.close(reset=True)",
        "                pass",
        "tests/server/test_stalls.py",
    ),
    Trial(
        "a connection's error stays in its connection",
        "server/connection.py",
        "        except* Exception as group:",
        "        except* ZeroDivisionError.__class__ as group:",
        "tests/server/test_containment.py",
    ),
    Trial(
        "HTTP/2 is not spoken",
        "server/http1.py",
        '        """Switch to no other protocol."""',
        "        await super()._check_protocol(event)",
        "tests/server/test_containment.py",
    ),
    Trial(
        "a response that did not reach its end is reset, on HTTP/1.0 too",
        "server/connection.py",
        'sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))',
        "pass",
        "tests/server/test_connections.py",
    ),
    Trial(
        "a request is not cancelled inside its own end",
        "web/connection.py",
        "        if not self._is_ending:\n",
        "        if True:\n",
        "tests/server/test_connections.py",
    ),
    Trial(
        "the application drains before the listeners close",
        "server/serving.py",
        "                    if drain is not None:\n                        await drain()\n",
        "",
        "tests/server/test_drain.py",
    ),
]


def run(trial: Trial, tree: Path) -> str | None:
    """The first test that fails without the mechanism; None if none does."""
    path = tree / "crucible_trio" / trial.file
    whole = path.read_text()
    if whole.count(trial.old) != 1:
        sys.exit(f"{trial.mechanism}: {trial.file} has changed, and the trial must follow")
    path.write_text(whole.replace(trial.old, trial.new))
    try:
        return first_failure(trial.tests.split(), tree)
    finally:
        path.write_text(whole)


def first_failure(tests: list[str], tree: Path) -> str | None:
    """Run tests on a tree until one fails; None if none does."""
    try:
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-x", "-q", "--tb=no", "-p", "no:cacheprovider", *tests],
            cwd=tree,
            env=os.environ | {"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"(the tests did not end within {SECONDS} s)"
    if done.returncode == 0:
        return None
    failed = [line for line in done.stdout.splitlines() if line.startswith("FAILED")]
    if not failed:
        sys.exit(f"the tests did not run\n{done.stdout}{done.stderr}")
    return failed[0].removeprefix("FAILED ").partition(" - ")[0]


def main() -> None:
    """Run the trials, print a table, and exit with 1 if a mechanism can be removed without a test failing."""
    unnoticed = 0
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder)
        for name in ("crucible_trio", "tests"):
            shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", tree)
        tests = {test for trial in TRIALS for test in trial.tests.split()}
        if (failed := first_failure(sorted(tests), tree)) is not None:
            sys.exit(f"{failed} fails with every mechanism in place")
        for trial in TRIALS:
            failed = run(trial, tree)
            unnoticed += failed is None
            print(f"| {trial.mechanism} | {f'`{failed}`' if failed else '**nothing**'} |", flush=True)
    print(f"{len(TRIALS)} mechanisms removed, {unnoticed} of them unnoticed")
    sys.exit(1 if unnoticed else 0)


if __name__ == "__main__":
    main()
