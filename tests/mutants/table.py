"""The mutants: one for each mechanism that a guarantee relies on."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Mutant:
    """An edit that removes one mechanism.

    Attributes:
        mechanism: The behaviour that the edit removes. docs/guarantees.md lists it in a table.
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
        file="generation.py",
        old="        except (trio.WouldBlock, trio.EndOfChannel):\n",
        new=("        except trio.EndOfChannel:\n            return []\n        except trio.WouldBlock:\n"),
        tests="tests/core",
    ),
    Mutant(
        mechanism="the buffer goes into the log when a stream is stopped",
        file="generation.py",
        old="rest = self._take_nowait(inf)",
        new="rest: list[Piece] = []",
        tests="tests/core/test_cancellation.py tests/core/test_ends.py",
    ),
    Mutant(
        mechanism="the terminal record is appended even without room",
        file="generation.py",
        old=("            if self._ending is not None:\n                self._finish()"),
        new=("            if self._ending is not None and self._has_room:\n                self._finish()"),
        tests="tests/core",
    ),
    Mutant(
        mechanism="a running engine waits for its furthest reader",
        file="log/memory.py",
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
        mechanism="the cursor moves when the write has returned, not when the record was read",
        file="apis/kit/body.py",
        old=("            if events := self._dialect.feed(self._reader.take(self._limit)):\n"),
        new=(
            "            events = self._dialect.feed(self._reader.take(self._limit))\n"
            "            self._reader.passed(self._reader.taken)\n"
            "            if events:\n"
        ),
        tests="tests/web",
    ),
    Mutant(
        mechanism="the last record of a window counts as read when the client asks again",
        file="reader.py",
        old="        return min(written, self.until - 1)\n",
        new="        return written\n",
        tests="tests/web/test_window.py",
    ),
    Mutant(
        mechanism="no more records are sent than the client's window",
        file="reader.py",
        old="            frames = frames[: self.until - self.taken]\n",
        new="            pass\n",
        tests="tests/web/test_window.py",
    ),
    Mutant(
        mechanism="the engine is not called before a reader has record 1",
        file="generation.py",
        old=(
            "            if self._waits_for_reader:\n"
            "                await self.log.wait_read(1)\n"
            "            if self._ending"
        ),
        new="            if self._ending",
        tests="tests/core tests/server/test_promises.py",
    ),
    Mutant(
        mechanism="a held stream calls its engine without a reader",
        file="pipeline.py",
        old="starts_with_reader=starts_with_reader and not held,",
        new="starts_with_reader=starts_with_reader,",
        tests="tests/core/test_hold.py",
    ),
    Mutant(
        mechanism="no grace period runs while a client waits in the hold",
        file="generation.py",
        old="return self.log.is_read or (self.hold is not None and self.hold.waiting > 0)",
        new="return self.log.is_read",
        tests="tests/core/test_hold.py",
    ),
    Mutant(
        mechanism="a client that leaves the hold is treated by the policy",
        file="hold.py",
        old="        has_left = True\n",
        new="        has_left = False\n",
        tests="tests/core/test_hold.py",
    ),
    Mutant(
        mechanism="after the hold, a short grace period leaves time to attach a reader",
        file="deadlines.py",
        old="now + (max(within, self._grace) if may_be_late else within)",
        new="now + self._grace",
        tests="tests/core/test_hold.py",
    ),
    Mutant(
        mechanism="a refused stream gives its key back",
        file="pipeline.py",
        old="        await self._release(stream.owner, key, stream.id)\n",
        new="",
        tests="tests/core/test_hold.py",
    ),
    Mutant(
        mechanism="a refusal in the hold leaves no stream",
        file="apis/kit/starting.py",
        old="        return False\n    await pipeline.discard(stream, key)\n",
        new="        return False\n",
        tests="tests/openai/test_hold.py",
    ),
    Mutant(
        mechanism="a refusal that no client was told of leaves no idempotency key",
        file="apis/kit/starting.py",
        old="elif not stream.is_known and _was_refused(stream):",
        new="elif stream.is_known and not joined:",
        tests="tests/openai/test_hold.py",
    ),
    Mutant(
        mechanism="a response with a status and invalid headers is not asked for again",
        file="engines/upstream/sending.py",
        old="            if error.has_status:\n",
        new="            if not error.has_status:\n",
        tests="tests/engines/test_upstream.py",
    ),
    Mutant(
        mechanism="the server does not repeat what the client repeats",
        file="engines/upstream/retries.py",
        old="if delay is None or self._client_retries or failure",
        new="if delay is None or failure",
        tests="tests/openai/test_upstream_answers.py",
    ),
    Mutant(
        mechanism="stopping a stream cancels its engine",
        file="generation.py",
        old=("            self._stopped_at = trio.current_time()\n            self._scope.cancel()"),
        new="            self._stopped_at = trio.current_time()",
        tests="tests/core/test_cancellation.py",
    ),
    Mutant(
        mechanism="a single piece does not overtake streams that wait to be recorded",
        file="batching.py",
        old="        if self._waiting or perf",
        new="        if perf",
        tests="tests/core/test_backpressure.py",
    ),
    Mutant(
        mechanism="the pieces of a burst stay in the buffer and are merged",
        file="output.py",
        old="is_burst = self._pass == self._batcher.passes  #",
        new="is_burst = False  #",
        tests="tests/core/test_backpressure.py",
    ),
    Mutant(
        mechanism="an engine that never waits lets other tasks run",
        file="output.py",
        old="        if is_burst and self._batcher.is_over(self._pieces):\n            await",
        new="        if False:\n            await",
        tests="tests/core/test_output.py",
    ),
    Mutant(
        mechanism="pieces written outside of the engine's task let other tasks run",
        file="output.py",
        old="self._batcher.is_over(self._pieces):\n            return False",
        new="self._batcher.is_over(self._pieces):\n            pass",
        tests="tests/core/test_output.py",
    ),
    Mutant(
        mechanism="timers of one interval fire in the order of their times",
        file="timers.py",
        old="            bucket.sort(key=_BY_TIME)\n",
        new="",
        tests="tests/core/test_timers.py",
    ),
    Mutant(
        mechanism="a timer that is due later in its interval is kept",
        file="timers.py",
        old="            if timer.at < inf:  #",
        new="            if False:  #",
        tests="tests/core/test_timers.py",
    ),
    Mutant(
        mechanism="a piece that waits for a reader ends the wait for the engine",
        file="generation.py",
        old="        self._clock.piece_came()  # the stream does not wait",
        new="        # the stream does not wait",
        tests="tests/core/test_backpressure.py tests/core/test_deadlines.py",
    ),
    Mutant(
        mechanism="an engine's exception ends only its own stream",
        file="generation.py",
        old="        except* Exception as group:  # a Cancelled",
        new="        except* KeyError as group:  # a Cancelled",
        tests="tests/core/test_isolation.py",
    ),
    Mutant(
        mechanism="only its owner finds a stream",
        file="store/memory.py",
        old="if owner not in {None, stream.owner} or stream_id not in self._order:",
        new="if stream_id not in self._order:",
        tests="tests/core/test_pipeline.py tests/web/test_ownership.py",
    ),
    Mutant(
        mechanism="an idempotency key finds the stream that it started",
        file="store/idempotency.py",
        old=("        self._claims[owner, key] = _Claim(digest, stream_id)\n"),
        new="",
        tests="tests/core/test_idempotency.py",
    ),
    Mutant(
        mechanism="a second start with a key waits for the first",
        file="store/idempotency.py",
        old=(
            "            if claim.is_started:\n"
            "                return claim.stream_id\n"
            "            await claim.waiters.park()\n"
        ),
        new="            return claim.stream_id\n",
        tests="tests/core/test_idempotency.py tests/log",
    ),
    Mutant(
        mechanism="a refused start gives its key back",
        file="pipeline.py",
        old=("                await self.store.release(owner, key, stream_id)\n"),
        new="                pass\n",
        tests="tests/core/test_idempotency.py",
    ),
    Mutant(
        mechanism="all fields of a response's request count for its idempotency key",
        file="apis/openai/responses/requests.py",
        old='return "responses", msgspec.structs.replace(self.fields, stream=False, stream_options=None)',
        new="return self.fields.input",
        tests="tests/openai/test_responses_routes.py tests/openai/test_responses_afterwards.py",
    ),
    Mutant(
        mechanism="a page that left before the end of an answer gets the answer again",
        file="store/labels.py",
        old="readers.away = max(0, readers.away + away)",
        new="readers.away = 0",
        tests="tests/log/test_labels.py tests/web/ui/test_ui_routes.py",
    ),
    Mutant(
        mechanism="a page that was sent the end gets the answer again for a minute",
        file="owed_ends.py",
        old="        elif doubt_seconds and self._nursery is not None",
        new="        elif False and self._nursery is not None",
        tests="tests/web/ui/test_ui_routes.py",
    ),
    Mutant(
        mechanism="a new message in a chat stops the answer that still runs",
        file="apis/ui/routes.py",
        old='            earlier.cancel("client")',
        new="            pass",
        tests="tests/web/ui/test_ui_routes.py",
    ),
    Mutant(
        mechanism="a tool call that broke off is never given to a page as whole",
        file="apis/kit/endings.py",
        old="if open_calls:",
        new="if False:",
        tests="tests/web/ui/test_ui_fold.py",
    ),
    Mutant(
        mechanism="record 1 is visible before the engine is called",
        file="pipeline.py",
        old="                    await generation.log.flushed()\n",
        new="                    pass\n",
        tests="tests/log",
    ),
    Mutant(
        mechanism="an end that is accepted is not appended again before it is visible",
        file="generation.py",
        old="        if self.log.closed:\n",
        new="        if self.log.finished:\n",
        tests="tests/core/test_log_ends.py",
    ),
    Mutant(
        mechanism="a tool call that is cut off is not called whole",
        file="output.py",
        old="        is_whole = kind is None and not self._has_ended\n",
        new="        is_whole = True\n",
        tests="tests/core/test_output.py",
    ),
    Mutant(
        mechanism="the arguments of a tool call are contiguous",
        file="output.py",
        old=("        if self._call is not None:\n            raise _call_is_open()\n        if logprobs"),
        new="        if logprobs",
        tests="tests/core/test_output.py",
    ),
    Mutant(
        mechanism="after a refused record nothing but the end is recorded",
        file="recorder.py",
        old="        if self.full or len(frame) > self._free_bytes:",
        new="        if len(frame) > self._free_bytes:",
        tests="tests/core/test_recorder.py",
    ),
    Mutant(
        mechanism="pieces of different kinds are never merged",
        file="recorder.py",
        old="        if type(piece) is not type(first) or its_segment",
        new="        if first is None or its_segment",
        tests="tests/core/test_recorder.py",
    ),
    Mutant(
        mechanism="a request that needs a missing capability is refused",
        file="checks.py",
        old=("        raise InvalidRequestError(message, param)\n    numbers"),
        new="        pass\n    numbers",
        tests="tests/core/test_checks.py",
    ),
    Mutant(
        mechanism="an engine that counts too many tokens is stopped",
        file="generation.py",
        old="        if total > self._token_limit:",
        new="        if False:",
        tests="tests/core/test_ends.py",
    ),
    Mutant(
        mechanism="the cursor waits for the rest of a direct write",
        file="apis/kit/direct.py",
        old=("        if events and not self._write(events):\n            return before\n"),
        new="        if events:\n            self._write(events)\n",
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
        mechanism="a last piece that is cut short ends with a reset",
        file="server/connection.py",
        old="if reset or self._unsent or self._protocol.is_mid_response:",
        new="if reset or self._protocol.is_mid_response:",
        tests="tests/server/test_direct_writes.py",
    ),
    Mutant(
        mechanism="a few requests begin in each pass of the scheduler",
        file="server/connection.py",
        old="_BEGINNING: Final = 8",
        new="_BEGINNING: Final = 800",
        tests="tests/server/test_connections.py",
    ),
    Mutant(
        mechanism="a request that waits for its turn is not idle",
        file="server/connection.py",
        old="            self._become_busy()  # it waits for this server, and not for its client\n",
        new="",
        tests="tests/server/test_connections.py",
    ),
    Mutant(
        mechanism="no direct write overtakes a `send` that waits",
        file="server/connection.py",
        old="            and not self._writers\n",
        new="",
        tests="tests/server/test_direct_writes.py",
    ),
    Mutant(
        mechanism="a direct write goes only into its own response",
        file="server/connection.py",
        old=("            protocol.stream is request\n            and not self._unsent"),
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
        new="        except* KeyError as group:",
        tests="tests/server/test_containment.py",
    ),
    Mutant(
        mechanism="the server does not switch to HTTP/2",
        file="server/http1.py",
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
        old=("                    if drain is not None:\n                        await drain()\n"),
        new="",
        tests="tests/server/test_drain.py",
    ),
    Mutant(
        mechanism="a client that leaves is noticed while its connection is paused",
        file="server/connection.py",
        old="        self._protocol.can_read = ReadPause(self)\n",
        new="",
        tests="tests/server/test_connections.py",
    ),
    Mutant(
        mechanism="a stream that ends early is cancelled on its upstream",
        file="engines/crucible/engine.py",
        old="                await self._cancel(stream, asked, key)\n",
        new="                pass\n",
        tests="tests/engines/test_crucible.py",
    ),
    Mutant(
        mechanism="the upstream's stream waits while its connection is cut",
        file="engines/crucible/engine.py",
        old='on_disconnect="pause"',
        new='on_disconnect="cancel"',
        tests="tests/engines/test_crucible.py",
    ),
    Mutant(
        mechanism="output behind an open tool call of an upstream waits until its arguments are whole",
        file="engines/upstream/call_order.py",
        old="if not self._waiting or not call.has_begun or not call.is_closed:",
        new="if not self._waiting or not call.has_begun:",
        tests="tests/engines/test_calls.py",
    ),
    Mutant(
        mechanism="the output that waits for a tool call of an upstream is bounded",
        file="engines/upstream/call_order.py",
        old="if self._waiting_length > MAX_WAITING_LENGTH:",
        new="if False:",
        tests="tests/engines/test_calls.py",
    ),
    Mutant(
        mechanism="arguments that an upstream cut are not called whole",
        file="engines/upstream/call_order.py",
        old="is_cut = call.json.is_open or",
        new="is_cut =",
        tests="tests/engines/test_calls.py",
    ),
    Mutant(
        mechanism="no tool call is whole at the end of an upstream's stream that was cut",
        file="engines/upstream/call_order.py",
        old="elif is_whole and not is_cut:",
        new="elif not is_cut:",
        tests="tests/engines/test_calls.py",
    ),
    Mutant(
        mechanism="a reply that repeats a lost answer is not appended to it",
        file="engines/upstream/continuing.py",
        old="            if len(reply) >= repeated and",
        new="            if False and",
        tests="tests/engines/test_continuing.py",
    ),
    Mutant(
        mechanism="after the first piece no other engine is called",
        file="engines/router.py",
        old="if output.has_written or error.blames_request:",
        new="if error.blames_request:",
        tests="tests/engines/test_fallback.py",
    ),
    Mutant(
        mechanism="an upstream is not read while the buffer of its stream is full",
        file="engines/upstream/response.py",
        old="        return piece is None and not self.has_deadline",
        new="        return not self.has_deadline",
        tests="tests/engines/test_upstream.py",
    ),
    Mutant(
        mechanism="the body of a response is not read for a task that was cancelled",
        file="http/direct_reads.py",
        old="            self._forget(file)\n            return",
        new="            return",
        tests="tests/http/test_direct_reads.py",
    ),
    Mutant(
        mechanism="only a chunk that has nothing but another text is not read whole",
        file="engines/upstream/completion.py",
        old="self._skipped.total == skipped and ",
        new="",
        tests="tests/engines/test_same_form.py",
    ),
    Mutant(
        mechanism="fields of an upstream are not the first output of a stream",
        file="engines/upstream/writing.py",
        old="                self._fields.append(piece)\n",
        new="                await self._output.upstream_fields(piece.at, piece.fields)\n",
        tests="tests/engines/test_writing.py",
    ),
    Mutant(
        mechanism="no field of an upstream replaces one of ours",
        file="apis/openai/chat/upstream_fields.py",
        old=" if name not in _OWN_FIELDS[at]}",
        new="}",
        tests="tests/openai/test_upstream_fields.py",
    ),
    Mutant(
        mechanism="a request is freed when its generation has ended",
        file="pipeline.py",
        old="        if not stream.facts.keeps_input:\n",
        new="        if False:\n",
        tests="tests/core/test_facts_bytes.py",
    ),
    Mutant(
        mechanism="another engine gets only requests that it supports",
        file="engines/router.py",
        old=" if supports(info.capabilities_of(model), request)]",
        new="]",
        tests="tests/engines/test_fallback.py",
    ),
    Mutant(
        mechanism="a signed trace is accepted from its owner only",
        file="apis/kit/sealed.py",
        old='return b"%d.%b.%b" % (len(self._owner), self._owner, content)',
        new="return content",
        tests="tests/openai/test_responses_traces.py",
    ),
    Mutant(
        mechanism="a tool call that broke off is not part of the next turn",
        file="apis/openai/responses/input.py",
        old='if item.get("status") == "incomplete" and call.call_id not in answered:',
        new="if False:",
        tests="tests/openai/test_responses_earlier.py",
    ),
    Mutant(
        mechanism="two tools never have one name for the model",
        file="apis/openai/responses/tools.py",
        old="if name not in self._taken:",
        new="if True:",
        tests="tests/openai/test_responses_tools.py",
    ),
    Mutant(
        mechanism="a log has no room while a record is pending",
        file="log/shared.py",
        old="        if self._is_pending:\n            return False\n",
        new="",
        tests="tests/log/test_contract.py",
    ),
    Mutant(
        mechanism="a reader of another process has slack, counted in pieces",
        file="log/shared.py",
        old="for cursor in self._remote)) <= self._slack:",
        new="for cursor in self._remote)) <= 0:",
        tests="tests/log/test_shared.py",
    ),
    Mutant(
        mechanism="a process writes lost records again",
        file="store/redis/heartbeat.py",
        old="            log.acknowledge(answer, ended=False)\n",
        new="",
        tests="tests/redis/test_failures.py",
    ),
    Mutant(
        mechanism="a start with a key waits for the start of another process",
        file="store/redis/scripts.py",
        old="if string.sub(held, 1, 1) == 's' or id == ARGV[3] then return id end",
        new="if true then return id end",
        tests="tests/redis/test_shared_streams.py",
    ),
    Mutant(
        mechanism="a stream whose process is dead is ended by another",
        file="store/redis/mirrors.py",
        old="        if trio.current_time() < max(self._link.since, self._slow_at) + self._times.lease / 1000:\n",
        new="        if True:\n",
        tests="tests/redis/test_failures.py",
    ),
    Mutant(
        mechanism="readers elsewhere count for the policy of a stream",
        file="store/redis/presence.py",
        old=(
            "                cursors[message.sender] = own.log.attach_remote(offset)\n"
            "                own.stream.producer.reader_attached()\n"
        ),
        new="                pass\n",
        tests="tests/redis/test_shared_streams.py",
    ),
    Mutant(
        mechanism="a client that resumes in the middle of a record's events gets none of them again",
        file="apis/kit/replay.py",
        old='b"".join(events[-missing:])',
        new='b"".join(events)',
        tests="tests/anthropic/test_messages_fold.py",
    ),
    Mutant(
        mechanism="the block of a tool call that broke off is never closed",
        file="apis/anthropic/fold.py",
        old='if kind == "tool_use":',
        new="if False:",
        tests="tests/anthropic/test_messages_fold.py",
    ),
    Mutant(
        mechanism="a trace that this server has not signed does not go back to the model",
        file="apis/anthropic/content.py",
        old=" and self._seal.matches(trace, signature)",
        new="",
        tests="tests/anthropic/test_messages_requests.py",
    ),
    Mutant(
        mechanism="the counters of a worker that has ended stay in the sum",
        file="server/supervisor.py",
        old="        self.ended = add(self.ended, lasting(self.families))\n",
        new="",
        tests="tests/server/test_supervisor.py",
    ),
    Mutant(
        mechanism="a worker ends when its supervisor has ended",
        file="cli/worker.py",
        old="        self.accepting.cancel()  # the next supervisor may want the address\n        self._drain()\n",
        new="",
        tests="tests/server/test_workers.py",
    ),
]
