"""The mutants: one for each mechanism that a guarantee relies on."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Mutant:
    """An edit that removes one mechanism.

    Attributes:
        mechanism: What the code does without the edit. docs/guarantees.md has it in a table.
        file: The edited file, below `crucible_trio`.
        old: The replaced text. It occurs once in `file`.
        new: The text instead.
        tests: The tests that must notice, separated by spaces.
    """

    mechanism: str
    file: str
    old: str
    new: str
    tests: str


MUTANTS = [
    Mutant(
        mechanism="the last batch is kept when the channel closes after it",
        file="stream.py",
        old="        except (trio.WouldBlock, trio.EndOfChannel):\n",
        new="        except trio.EndOfChannel:\n            return []\n        except trio.WouldBlock:\n",
        tests="tests/core",
    ),
    Mutant(
        mechanism="the buffer goes into the log when a stream is stopped",
        file="stream.py",
        old="rest = self._take_nowait(inf)",
        new="rest: list[Token] = []",
        tests="tests/core/test_cancellation.py tests/core/test_ends.py",
    ),
    Mutant(
        mechanism="the terminal record is appended even without room",
        file="stream.py",
        old="        if self._ending is not None:\n            self._finish()",
        new="        if self._ending is not None and self._has_room:\n            self._finish()",
        tests="tests/core",
    ),
    Mutant(
        mechanism="a running engine waits for its furthest reader",
        file="log.py",
        old="            return self._furthest >= len(self._frames)",
        new="            return True",
        tests="tests/core/test_backpressure.py",
    ),
    Mutant(
        mechanism="the id is the last line of an event",
        file="sse.py",
        old='b"data: %b\\nid: %b\\n\\n" % (data, event_id.encode())',
        new='b"id: %b\\ndata: %b\\n\\n" % (event_id.encode(), data)',
        tests="tests/web/test_framing.py tests/core/test_records.py",
    ),
    Mutant(
        mechanism="a cursor moves when the write has returned, not when the record was read",
        file="web/body.py",
        old="        return self._dialect.feed(self._reader.take(limit_bytes))",
        new=(
            "        events = self._dialect.feed(self._reader.take(limit_bytes))\n"
            "        self._reader.passed(self._reader.taken)\n"
            "        return events"
        ),
        tests="tests/web",
    ),
    Mutant(
        mechanism="the engine is not called before a reader has record 1",
        file="stream.py",
        old=(
            "            if self._waits_for_reader:\n"
            "                await self.log.wait_read(1)\n"
            "            if self._ending"
        ),
        new="            if self._ending",
        tests="tests/core tests/server/test_promises.py",
    ),
    Mutant(
        mechanism="stopping a stream cancels its engine",
        file="stream.py",
        old="            self._stopped_at = trio.current_time()\n            self._scope.cancel()",
        new="            self._stopped_at = trio.current_time()",
        tests="tests/core/test_cancellation.py",
    ),
    Mutant(
        mechanism="a single piece does not overtake streams that wait to be recorded",
        file="pacing.py",
        old="        if self._waiting or perf",
        new="        if perf",
        tests="tests/core/test_backpressure.py",
    ),
    Mutant(
        mechanism="the pieces of a burst stay in the buffer and are merged",
        file="output.py",
        old="        is_first = self._pass != self._pacing.passes\n",
        new="        is_first = True\n",
        tests="tests/core/test_backpressure.py",
    ),
    Mutant(
        mechanism="an engine that never waits lets other tasks run",
        file="output.py",
        old="        if not is_first and self._pacing.is_over(self._pieces):",
        new="        if False:",
        tests="tests/core/test_output.py",
    ),
    Mutant(
        mechanism="the engine's deadlines stop while a piece waits for a reader",
        file="stream.py",
        old="        self._clocks.token_came()  # whoever",
        new="        # whoever",
        tests="tests/core/test_backpressure.py tests/core/test_deadlines.py",
    ),
    Mutant(
        mechanism="an engine's exception ends only its own stream",
        file="stream.py",
        old="        except* Exception as group:  # a Cancelled",
        new="        except* ZeroDivisionError as group:  # a Cancelled",
        tests="tests/core/test_isolation.py",
    ),
    Mutant(
        mechanism="only the owner finds a stream",
        file="pipeline.py",
        old="if owner not in {None, stream.owner} or stream in self._forgotten:",
        new="if stream in self._forgotten:",
        tests="tests/core/test_pipeline.py tests/web/test_ownership.py",
    ),
    Mutant(
        mechanism="an idempotency key finds the stream that it started",
        file="pipeline.py",
        old="            self._keys.enter(owner, key, request, stream.id)\n",
        new="            pass\n",
        tests="tests/core/test_idempotency.py",
    ),
    Mutant(
        mechanism="a cursor does not move while the server buffers a part of a direct write",
        file="web/body.py",
        old="        if events and not self._write_directly(events):\n            return before\n",
        new="        if events:\n            self._write_directly(events)\n",
        tests="tests/web/test_direct_writes.py",
    ),
    Mutant(
        mechanism="the rest of a direct write is sent before the next write",
        file="server/connection.py",
        old="memoryview(self._unsent + data)",
        new="memoryview(data + self._unsent)",
        tests="tests/server/test_direct_writes.py",
    ),
    Mutant(
        mechanism="a direct write does not overtake a waiting `send`",
        file="server/connection.py",
        old="            and not self._writers\n",
        new="",
        tests="tests/server/test_direct_writes.py",
    ),
    Mutant(
        mechanism="a direct write goes only into its own response",
        file="server/connection.py",
        old="            protocol.stream is request\n            and not self._unsent",
        new="            not self._unsent",
        tests="tests/server/test_direct_writes.py",
    ),
    Mutant(
        mechanism="every write has a deadline",
        file="server/connection.py",
        old="with trio.fail_after(self._config.write_timeout):",
        new="if True:",
        tests="tests/server/test_stalls.py",
    ),
    Mutant(
        mechanism="nothing is sent after a write that was cut short",
        file="server/connection.py",
        old="                self.close(reset=True)",
        new="                pass",
        tests="tests/server/test_stalls.py",
    ),
    Mutant(
        mechanism="a connection's exception ends only that connection",
        file="server/connection.py",
        old="        except* Exception as group:",
        new="        except* ZeroDivisionError.__class__ as group:",
        tests="tests/server/test_containment.py",
    ),
    Mutant(
        mechanism="the server does not switch to HTTP/2",
        file="server/connection.py",
        old='        """Switch to no other protocol."""',
        new="        await super()._check_protocol(event)",
        tests="tests/server/test_containment.py",
    ),
    Mutant(
        mechanism="an incomplete response ends with a reset, also on HTTP/1.0",
        file="server/connection.py",
        old='sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))',
        new="pass",
        tests="tests/server/test_connections.py",
    ),
    Mutant(
        mechanism="a request that is ending is not cancelled",
        file="web/connection.py",
        old="        if not self._is_ending:\n",
        new="        if True:\n",
        tests="tests/server/test_connections.py",
    ),
    Mutant(
        mechanism="the application drains before the listeners close",
        file="server/serving.py",
        old="                    if drain is not None:\n                        await drain()\n",
        new="",
        tests="tests/server/test_drain.py",
    ),
]
