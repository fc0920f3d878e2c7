"""Load and faults on the real server, for a while; then nothing may be lost, and nothing left.

    python tests/soak/soak.py [--seconds 180] [--clients 200] [--controls 20] [--seed N]

Each round starts as many streams as there are clients. Most are read through a proxy that cuts, stalls, throttles and
resets; some are read along by a client that nothing happens to; others are read slowly, or not at all, are cancelled,
left, or fail. In the last round the server is told to stop in the middle. Exit code 0: everything came once and in
order, and server and client hold what they held before. Everything happens on 127.0.0.1 and is bounded in number and
time; the printed line repeats a run.
"""

from __future__ import annotations

import argparse
import math
import random
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import readers
import server
import trio
from readers import Found, Tally
from workload import kind_of, prompts

from crucible_trio.client import Client, open_client
from crucible_trio.errors import ServerRefusedError, StreamLostError
from crucible_trio.records import TERMINAL
from crucible_trio.testing import RandomChaos, open_chaos_proxy

ROUND_SECONDS = 120.0  # a round that takes longer hangs
SETTLE_SECONDS = 20.0  # for what ends by itself after its client has gone

# What is printed. `kept` are streams and connections, `blocks` live objects of all kinds.
HELD = ("tasks", "files", "kept", "blocks", "mib")
# Some error or frame may hold the last one that went through it.
SLACK_KEPT = 10
# What may stay of a stream that is gone, in objects: its id, its idempotency key with the request, and an alarm that
# was cancelled are kept until their time, some 10 to 30 in all; and what a fault leaves behind when it is met first.
SLACK_BLOCKS, SLACK_BLOCKS_PER_STREAM = 5000, 60
# For the whole, over what those take: the allocator does not find the same holes in every round.
SLACK_MIB = 16.0
# Failures in a row after which a client gives up: never while there is a server, in seconds when there is none.
PATIENT, BRIEF = 30, 6
MAX_LINES = 50  # of what is wrong; the rest is seldom of another kind


class Process:
    """The server, as its parent sees it."""

    def __init__(self, process: trio.Process) -> None:
        self.process = process
        self.port = 0
        self._received = b""

    async def line(self) -> bytes:
        assert self.process.stdout is not None
        while b"\n" not in self._received:
            data = await self.process.stdout.receive_some()
            if not data:
                raise SystemExit("the server has gone")
            self._received += data
        line, _, self._received = self._received.partition(b"\n")
        return line

    async def ask(self, command: str) -> dict[str, float]:
        assert self.process.stdin is not None
        await self.process.stdin.send_all(command.encode() + b"\n")
        return msgspec.json.decode(await self.line(), type=dict[str, float])


@asynccontextmanager
async def open_server(path: str) -> AsyncIterator[Process]:
    async with trio.open_nursery() as nursery:
        command = [sys.executable, "-W", "error", str(Path(__file__).with_name("server.py")), path]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        process = Process(await nursery.start(partial(trio.run_process, command, check=False, **pipes)))
        process.port = int(await process.line())
        yield process
        nursery.cancel_scope.cancel()


class Round:
    """One round: its clients, and what they found."""

    def __init__(self, process: Process, seed: int, tally: Tally) -> None:
        self.process = process
        self.seed = seed
        self.tally = tally
        self.stopping = False  # the server has been told to

    async def run(self, names: list[str], controls: int, *, stop_in_the_middle: bool = False) -> None:
        """Have all these streams read at once; `controls` of them by two."""
        # Half of the connections are left alone: a client gives up after so many failures in a row, as it should.
        chaos = RandomChaos(seed=self.seed, untouched=0.5)
        attempts = BRIEF if stop_in_the_middle else PATIENT
        patience: dict[str, Any] = {"retry_seconds": 0.01, "max_attempts": attempts, "max_first_attempts": attempts}
        port = self.process.port
        tap = partial(readers.Tap, self.tally)
        streams = [Found(name) for name in names]
        along = [found for found in streams if kind_of(found.prompt) in {"reads", "fails", "drains"}][:controls]
        async with (
            open_chaos_proxy(port, chaos) as proxy,
            open_client(proxy.url, silence_seconds=3.0, transport=tap(), **patience) as cut,
            open_client(f"http://127.0.0.1:{port}", transport=tap()) as uncut,
        ):
            with trio.move_on_after(ROUND_SECONDS) as scope:
                async with trio.open_nursery() as nursery:
                    for found in streams:
                        nursery.start_soon(self._read, found, cut, uncut)
                    for found in along:
                        nursery.start_soon(self._read_along, found, uncut)
                    if stop_in_the_middle:
                        for found in along:
                            await found.attached.wait()
                        if not (await self.process.ask("held"))["engines"]:
                            self.tally.wrong.append("nothing ran any more when the server was told to stop")
                        self.stopping = True
                        self.process.process.send_signal(signal.SIGTERM)
            if scope.cancelled_caught:
                self.tally.wrong.append(f"a round took more than {ROUND_SECONDS:g} s\n{proxy.report()}")
        for found in along:
            if not found.control:
                self.tally.wrong.append(f"control {found.prompt!r}: got nothing")
            elif found.records and isinstance(found.records[-1], TERMINAL):
                self.tally.compared += 1
                if found.records != found.control:
                    self.tally.wrong.append(f"{found.prompt!r}: one reader was cut and one was not, and they differ")

    async def _read_along(self, found: Found, uncut: Client) -> None:
        try:
            await readers.read_along(uncut, found, self.tally)
        except (StreamLostError, ServerRefusedError) as error:  # also when it has been told to stop: nothing excuses it
            self.tally.lost += 1
            self.tally.wrong.append(f"control {found.prompt!r}: {error}")

    async def _read(self, found: Found, cut: Client, uncut: Client) -> None:
        port, name = self.process.port, found.prompt
        try:
            match kind_of(name):
                case "slow":
                    await readers.read_slowly(port, uncut, name, self.tally)
                case "frozen":
                    await readers.freeze(port, uncut, name, self.tally)
                case "leaves":
                    await readers.leave(port, name, self.tally)
                case _:
                    await readers.read(cut, found, self.tally)
        except (StreamLostError, ServerRefusedError) as error:
            if self.stopping:  # it starts nothing new any more, and waits for nobody once all streams have ended
                self.tally.gone += 1
                self.tally.check_beginning(name, found.records, "left behind")
            else:
                self.tally.lost += 1
                self.tally.wrong.append(f"{name!r}: {error}")


async def settled(process: Process, tally: Tally, before: dict[str, float] | None = None) -> dict[str, float]:
    """What the server holds once nothing moves any more: no engine, no reader, and what it held before."""
    held = await process.ask("held")
    with trio.move_on_after(SETTLE_SECONDS) as scope:
        while True:
            last, held = held, await process.ask("held")
            same = all((before or last)[what] == held[what] for what in ("tasks", "files"))
            if same and not held["engines"] and not held["readers"]:
                break
            await trio.sleep(0.1)
    if scope.cancelled_caught:
        tally.wrong.append(f"the server still holds {held}, and held {before}")
    return held


async def let_go(process: Process, tally: Tally) -> list[float]:
    """For each client that has left, the seconds until its engine had been cancelled."""
    seconds: list[float] = []
    with trio.move_on_after(SETTLE_SECONDS):
        while tally.closed_at:
            for prompt, moment in (await process.ask("let go")).items():
                if prompt in tally.closed_at:  # not one that was late for the last round
                    seconds.append(moment - tally.closed_at.pop(prompt))
            await trio.sleep(0.05)
    tally.wrong += [f"{prompt!r}: the client has left and the engine runs on" for prompt in tally.closed_at]
    tally.closed_at.clear()
    return seconds


async def soak(*, seconds: float, clients: int, controls: int, warm_up: int, seed: int, path: str) -> Tally:
    """Run it and print what came of it."""
    tally = Tally()
    seconds_to_let_go: list[float] = []
    rounds = 0
    async with open_server(path) as process:

        async def one_round() -> None:
            nonlocal rounds
            rounds += 1
            begin = trio.current_time()
            await Round(process, seed * 1000 + rounds, tally).run(prompts(seed, rounds, clients), controls)
            seconds_to_let_go.extend(await let_go(process, tally))
            await settled(process, tally)
            await process.ask("forget")
            mib = (await process.ask("held"))["mib"]
            print(f"round {rounds}: {trio.current_time() - begin:.1f} s, server {mib:.1f} MiB", flush=True)

        for _ in range(warm_up):
            await one_round()
        before, own_before = await settled(process, tally), server.held()
        streams_before = tally.streams
        end = trio.current_time() + seconds
        while trio.current_time() < end or rounds == warm_up:
            await one_round()
        measured_streams = tally.streams - streams_before
        after, own_after = await settled(process, tally, before), server.held()

        names = [f"drains {seed} {clients} {number}" for number in range(clients)]
        await Round(process, seed * 1000, tally).run(names, controls, stop_in_the_middle=True)
        with trio.move_on_after(SETTLE_SECONDS):
            await process.process.wait()
        if process.process.returncode != 0:
            tally.wrong.append(f"after SIGTERM the server ended with {process.process.returncode}")

    for name, one, other in (("server", before, after), ("clients", own_before, own_after)):
        print(f"{name}:", ", ".join(f"{what} {one[what]:.5g} -> {other[what]:.5g}" for what in HELD))
        more = (
            one["tasks"] != other["tasks"] or one["files"] != other["files"] or other["kept"] > one["kept"] + SLACK_KEPT
        )
        blocks = other["blocks"] - one["blocks"]
        more = more or blocks > SLACK_BLOCKS + SLACK_BLOCKS_PER_STREAM * measured_streams
        if more or other["mib"] - one["mib"] > SLACK_MIB:
            tally.wrong.append(f"{name}: it holds more than before")
    print(
        f"{rounds} rounds, {tally.streams} streams, {tally.records} records, {tally.connections} connections tapped, "
        f"{tally.reconnects} times reconnected, {tally.compared} streams compared with an uncut reader, "
        f"{tally.gone} readers without a server after SIGTERM"
    )
    longest = max(seconds_to_let_go, default=math.nan) * 1000
    print(f"from client close to engine cancelled: {longest:.1f} ms at the longest, of {len(seconds_to_let_go)}")
    print(
        f"lost {tally.lost}, repeated {tally.repeated}, reordered {tally.reordered}, otherwise wrong {len(tally.wrong)}"
    )
    return tally


def main() -> int:
    parser = argparse.ArgumentParser(description="Load and faults on the real server.")
    parser.add_argument("--seconds", type=float, default=180)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--controls", type=int, default=20)
    # What is imported, cached or allocated once, in the first rounds, is no leak.
    parser.add_argument("--warm-up", type=int, default=2, help="rounds before the first measurement")
    parser.add_argument("--seed", type=int, default=random.randrange(1_000_000))
    parser.add_argument("--path", choices=["direct", "plain"], default="direct", help="how the server writes")
    options = vars(parser.parse_args())
    words = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in options.items())
    print(f"to repeat: python tests/soak/soak.py {words}", flush=True)
    tally = trio.run(partial(soak, **options))
    for line in tally.wrong[:MAX_LINES]:
        print(line)
    return 1 if tally.wrong or tally.lost or tally.repeated or tally.reordered else 0


if __name__ == "__main__":
    sys.exit(main())
