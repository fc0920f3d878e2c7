"""Mutation tests: remove one mechanism at a time and see a test fail. `make mutants` runs them.

Each mutant edits a copy of the tree and runs the tests that should fail. A mutant that survives fails the run, because
then no test checks the promise that the mechanism keeps.
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
# A mutant may make a test hang. On a busy machine no test here takes a tenth of this.
SECONDS = 300


@dataclass(frozen=True)
class Mutant:
    """One mechanism without which a test must fail. `old`, which occurs in `file` once, becomes `new`."""

    mechanism: str
    file: str
    old: str
    new: str
    tests: str


MUTANTS = [
    Mutant(
        "the last batch is kept when the channel ends after it",
        "generation.py",
        "        except (trio.WouldBlock, trio.EndOfChannel):\n",
        "        except trio.EndOfChannel:\n            return []\n        except trio.WouldBlock:\n",
        "tests/core",
    ),
    Mutant(
        "the buffer is drained when a stream is stopped",
        "generation.py",
        "rest = self._take_nowait(inf)",
        "rest: list[Piece] = []",
        "tests/core/test_cancellation.py tests/core/test_ends.py",
    ),
    Mutant(
        "the terminal record needs no room",
        "generation.py",
        "        if self._ending is not None:\n            self._finish()",
        "        if self._ending is not None and self._has_room:\n            self._finish()",
        "tests/core",
    ),
    Mutant(
        "room: a running engine waits for its furthest reader",
        "log/memory.py",
        "            return self._furthest >= len(self._frames)",
        "            return True",
        "tests/core/test_backpressure.py",
    ),
    Mutant(
        "the id is the last line of an event",
        "sse.py",
        'b"data: %b\\nid: %b\\n\\n" % (data, event_id.encode())',
        'b"id: %b\\ndata: %b\\n\\n" % (event_id.encode(), data)',
        "tests/web/test_framing.py tests/core/test_records.py",
    ),
    Mutant(
        "the cursor moves when the write has returned, not when the record was read",
        "apis/kit/body.py",
        "            if events := self._dialect.feed(self._reader.take(MESSAGE_BYTES)):\n",
        "            events = self._dialect.feed(self._reader.take(MESSAGE_BYTES))\n"
        "            self._reader.passed(self._reader.taken)\n"
        "            if events:\n",
        "tests/web",
    ),
    Mutant(
        "the engine is called when a reader has record 1",
        "generation.py",
        "            if self._waits_for_reader:\n"
        "                await self.log.wait_read(1)\n"
        "            if self._ending",
        "            if self._ending",
        "tests/core tests/server/test_promises.py",
    ),
    Mutant(
        "a stopped stream cancels its engine",
        "generation.py",
        "            self._stopped_at = trio.current_time()\n            self._scope.cancel()",
        "            self._stopped_at = trio.current_time()",
        "tests/core/test_cancellation.py",
    ),
    Mutant(
        "a piece that comes alone waits behind streams that wait",
        "batching.py",
        "        if self._waiting or perf",
        "        if perf",
        "tests/core/test_backpressure.py",
    ),
    Mutant(
        "a burst is left in the buffer and merged",
        "output.py",
        "        is_first = self._pass != self._batcher.passes\n",
        "        is_first = True\n",
        "tests/core/test_backpressure.py",
    ),
    Mutant(
        "an engine that never waits lets other tasks run",
        "output.py",
        "        if not is_first and self._batcher.is_over(self._pieces):",
        "        if False:",
        "tests/core/test_output.py",
    ),
    Mutant(
        "a piece that waits for a reader ends the wait for the engine",
        "generation.py",
        "        self._clock.piece_came()  # the stream does not wait",
        "        # the stream does not wait",
        "tests/core/test_backpressure.py tests/core/test_deadlines.py",
    ),
    Mutant(
        "an engine's error stays in its stream",
        "generation.py",
        "        except* Exception as group:  # a Cancelled",
        "        except* ZeroDivisionError as group:  # a Cancelled",
        "tests/core/test_isolation.py",
    ),
    Mutant(
        "only its owner finds a stream",
        "store/memory.py",
        "if owner not in {None, stream.owner} or stream_id not in self._order:",
        "if stream_id not in self._order:",
        "tests/core/test_pipeline.py tests/web/test_ownership.py",
    ),
    Mutant(
        "an idempotency key finds the stream that it started",
        "store/idempotency.py",
        "        self._claims[owner, key] = _Claim(digest, stream_id)\n",
        "",
        "tests/core/test_idempotency.py",
    ),
    Mutant(
        "a second start with a key waits for the first",
        "store/idempotency.py",
        "            if claim.is_started:\n"
        "                return claim.stream_id\n"
        "            await claim.waiters.park()\n",
        "            return claim.stream_id\n",
        "tests/core/test_idempotency.py tests/log",
    ),
    Mutant(
        "a refused start gives its key back",
        "pipeline.py",
        "                await self.store.release(owner, key, stream_id)\n",
        "                pass\n",
        "tests/core/test_idempotency.py",
    ),
    Mutant(
        "the facts of an API count for an idempotency key",
        "store/idempotency.py",
        "msgspec.json.encode((request, for_apis), ",
        "msgspec.json.encode(request, ",
        "tests/openai/test_responses_routes.py tests/openai/test_responses_afterwards.py",
    ),
    Mutant(
        "record 1 is visible before the engine is called",
        "pipeline.py",
        "                await generation.log.flushed()\n",
        "                pass\n",
        "tests/log",
    ),
    Mutant(
        "an end that is accepted is not appended again before it is visible",
        "generation.py",
        "        if self.log.closed:\n",
        "        if self.log.finished:\n",
        "tests/log",
    ),
    Mutant(
        "a tool call that is cut off is not called whole",
        "output.py",
        "        is_whole = kind is None and not self._has_ended\n",
        "        is_whole = True\n",
        "tests/core/test_output.py",
    ),
    Mutant(
        "the arguments of a tool call are contiguous",
        "output.py",
        "        if self._call is not None:\n            raise _call_is_open()\n        if logprobs",
        "        if logprobs",
        "tests/core/test_output.py",
    ),
    Mutant(
        "after a refused record nothing but the end is recorded",
        "recorder.py",
        "        if self.full or len(frame) > self._free_bytes:",
        "        if len(frame) > self._free_bytes:",
        "tests/core/test_recorder.py",
    ),
    Mutant(
        "pieces of different kinds are never merged",
        "recorder.py",
        "        if type(piece) is not type(first) or its_segment",
        "        if first is None or its_segment",
        "tests/core/test_recorder.py",
    ),
    Mutant(
        "a request that needs a missing capability is refused",
        "checks.py",
        "        raise InvalidRequestError(message, param)\n    numbers",
        "        pass\n    numbers",
        "tests/core/test_checks.py",
    ),
    Mutant(
        "the token limit holds on the engine's count",
        "generation.py",
        "        if total > self._token_limit:",
        "        if False:",
        "tests/core/test_ends.py",
    ),
    Mutant(
        "the cursor waits for the rest of a direct write",
        "apis/kit/direct.py",
        "        if events and not self._write(events):\n            return before\n",
        "        if events:\n            self._write(events)\n",
        "tests/web/test_direct_writes.py",
    ),
    Mutant(
        "the rest of a direct write goes out first",
        "server/connection.py",
        "memoryview(self._unsent + data)",
        "memoryview(data + self._unsent)",
        "tests/server/test_direct_writes.py",
    ),
    Mutant(
        "no direct write overtakes a `send` that waits",
        "server/connection.py",
        "            and not self._writers\n",
        "",
        "tests/server/test_direct_writes.py",
    ),
    Mutant(
        "a direct write goes into its own response only",
        "server/connection.py",
        "            protocol.stream is request\n            and not self._unsent",
        "            not self._unsent",
        "tests/server/test_direct_writes.py",
    ),
    Mutant(
        "every write has a deadline",
        "server/connection.py",
        "with trio.fail_after(self._config.write_timeout):",
        "if True:",
        "tests/server/test_stalls.py",
    ),
    Mutant(
        "nothing follows a write that was cut short",
        "server/connection.py",
        "                self.close(reset=True)",
        "                pass",
        "tests/server/test_stalls.py",
    ),
    Mutant(
        "a connection's error stays in its connection",
        "server/connection.py",
        "        except* Exception as group:",
        "        except* ZeroDivisionError.__class__ as group:",
        "tests/server/test_containment.py",
    ),
    Mutant(
        "HTTP/2 is off",
        "server/http1.py",
        '        """Switch to no other protocol."""',
        "        await super()._check_protocol(event)",
        "tests/server/test_containment.py",
    ),
    Mutant(
        "a response that did not reach its end is reset, on HTTP/1.0 too",
        "server/connection.py",
        'sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))',
        "pass",
        "tests/server/test_connections.py",
    ),
    Mutant(
        "a request is not cancelled inside its end-of-response",
        "web/connection.py",
        "        if not self._is_ending:\n",
        "        if True:\n",
        "tests/server/test_connections.py",
    ),
    Mutant(
        "the application drains before the listeners close",
        "server/serving.py",
        "                    if drain is not None:\n                        await drain()\n",
        "",
        "tests/server/test_drain.py",
    ),
]


def run(mutant: Mutant, tree: Path) -> str | None:
    """The first test that fails without the mechanism. None if all pass."""
    path = tree / "crucible_trio" / mutant.file
    whole = path.read_text()
    if whole.count(mutant.old) != 1:
        sys.exit(f"{mutant.mechanism}: {mutant.file} has changed, so this mutant must be adapted")
    path.write_text(whole.replace(mutant.old, mutant.new))
    try:
        return first_failure(mutant.tests.split(), tree)
    finally:
        path.write_text(whole)


def first_failure(tests: list[str], tree: Path) -> str | None:
    """The first of these tests that fails on a tree. None if all pass."""
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
    """Run the mutants and print a table. Exit with 1 if one survives."""
    survived = 0
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder)
        for name in ("crucible_trio", "tests"):
            shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", tree)
        tests = {test for mutant in MUTANTS for test in mutant.tests.split()}
        if (failed := first_failure(sorted(tests), tree)) is not None:
            sys.exit(f"{failed} fails with every mechanism in place")
        for mutant in MUTANTS:
            failed = run(mutant, tree)
            survived += failed is None
            print(f"| {mutant.mechanism} | {f'`{failed}`' if failed else '**nothing**'} |", flush=True)
    print(f"{len(MUTANTS)} mutants, {survived} survived")
    sys.exit(1 if survived else 0)


if __name__ == "__main__":
    main()
