"""The soak test: load and faults on the real server. No record may be lost, and no memory or file leaked.

    python tests/soak/soak.py [--seconds 180] [--clients 200] [--controls 20] [--seed N]

Each round starts one stream for each client. Most are read through a proxy that cuts, stalls, throttles and resets.
Some of these are also read by a control client without faults. Other streams are read slowly or not at all, are
cancelled, are abandoned, or fail. In the last round the server gets SIGTERM in the middle.

Exit code 0: every record came once and in order, and server and clients have the same resources as before. Everything
happens on 127.0.0.1 and is bounded in number and time. The first printed line has the command that repeats the run.
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
from readers import SoakStream, Tally
from workload import kind_of, prompts

from crucible_trio.client import Client, open_client
from crucible_trio.errors import ServerRefusedError, StreamLostError
from crucible_trio.records import TERMINAL
from crucible_trio.testing import RandomChaos, open_chaos_proxy

ROUND_SECONDS = 120.0  # a longer round counts as hanging
SETTLE_SECONDS = 20.0  # until streams and connections without clients have ended

# The printed numbers. `kept` counts streams and connections, `blocks` live objects of all kinds.
HELD = ("tasks", "files", "kept", "blocks", "mib")
# An exception or a frame may still refer to the last stream that it handled.
SLACK_KEPT = 10
# Objects that may remain of a deleted stream: its id, its idempotency key with the request, and a cancelled timer stay
# until they expire, together 10 to 30 objects. The first occurrence of a fault allocates some more.
SLACK_BLOCKS, SLACK_BLOCKS_PER_STREAM = 5000, 60
# For the process, beyond those objects: memory fragments differently in every round.
SLACK_MIB = 16.0
# Failures in a row after which a client gives up: too many to happen while there is a server, and a few seconds
# without one.
PATIENT, BRIEF = 30, 6
MAX_LINES = 50  # printed errors, because the rest is rarely of another kind


class SoakServer:
    """The server process."""

    def __init__(self, process: trio.Process) -> None:
        self.process = process
        self.port = 0
        self._received = b""

    async def line(self) -> bytes:
        assert self.process.stdout is not None
        while b"\n" not in self._received:
            data = await self.process.stdout.receive_some()
            if not data:
                raise SystemExit("the server process has ended")
            self._received += data
        line, _, self._received = self._received.partition(b"\n")
        return line

    async def ask(self, command: str) -> dict[str, float]:
        assert self.process.stdin is not None
        await self.process.stdin.send_all(command.encode() + b"\n")
        return msgspec.json.decode(await self.line(), type=dict[str, float])


@asynccontextmanager
async def open_server(path: str) -> AsyncIterator[SoakServer]:
    async with trio.open_nursery() as nursery:
        command = [sys.executable, "-W", "error", str(Path(__file__).with_name("server.py")), path]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        process = SoakServer(await nursery.start(partial(trio.run_process, command, check=False, **pipes)))
        process.port = int(await process.line())
        yield process
        nursery.cancel_scope.cancel()


class Round:
    """One round: its clients, and their checks."""

    def __init__(self, process: SoakServer, seed: int, tally: Tally) -> None:
        self.process = process
        self.seed = seed
        self.tally = tally
        self.stopping = False  # the server has got SIGTERM

    async def run(self, names: list[str], controls: int, *, sigterm_in_the_middle: bool = False) -> None:
        """Read all these streams at the same time, and `controls` of them also with a control client."""
        # Half of the connections have no fault, because a client rightly gives up after several failures in a row.
        chaos = RandomChaos(seed=self.seed, untouched=0.5)
        attempts = BRIEF if sigterm_in_the_middle else PATIENT
        patience: dict[str, Any] = {"retry_seconds": 0.01, "max_attempts": attempts, "max_first_attempts": attempts}
        port = self.process.port
        uncut_url = f"http://127.0.0.1:{port}"
        tap = partial(readers.WireTap, self.tally)
        streams = [SoakStream(name) for name in names]
        controlled = [target for target in streams if kind_of(target.prompt) in {"reads", "fails", "drains"}][:controls]
        async with (
            open_chaos_proxy(port, chaos) as proxy,
            open_client(proxy.url, silence_seconds=3.0, connect=tap(proxy.url), **patience) as cut,
            open_client(uncut_url, connect=tap(uncut_url)) as uncut,
        ):
            with trio.move_on_after(ROUND_SECONDS) as scope:
                async with trio.open_nursery() as nursery:
                    for target in streams:
                        nursery.start_soon(self._read, target, cut, uncut)
                    for target in controlled:
                        nursery.start_soon(self._read_control, target, uncut)
                    if sigterm_in_the_middle:
                        for target in controlled:
                            await target.control_attached.wait()
                        if not (await self.process.ask("held"))["engines"]:
                            self.tally.wrong.append("no engine was running when the server got SIGTERM")
                        self.stopping = True
                        self.process.process.send_signal(signal.SIGTERM)
            if scope.cancelled_caught:
                self.tally.wrong.append(f"a round took more than {ROUND_SECONDS:g} s\n{proxy.report()}")
        for target in controlled:
            if not target.control:
                self.tally.wrong.append(f"control {target.prompt!r}: got no records")
            elif target.records and isinstance(target.records[-1], TERMINAL):
                self.tally.compared += 1
                if target.records != target.control:
                    self.tally.wrong.append(
                        f"{target.prompt!r}: the records of the cut client and of the control differ"
                    )

    async def _read_control(self, target: SoakStream, uncut: Client) -> None:
        try:
            await readers.read_control(uncut, target, self.tally)
        except (
            StreamLostError,
            ServerRefusedError,
        ) as error:  # an error even at shutdown, because the drain lets it finish
            self.tally.lost += 1
            self.tally.wrong.append(f"control {target.prompt!r}: {error}")

    async def _read(self, target: SoakStream, cut: Client, uncut: Client) -> None:
        port, name = self.process.port, target.prompt
        try:
            match kind_of(name):
                case "slow":
                    await readers.read_slowly(port, uncut, name, self.tally)
                case "frozen":
                    await readers.freeze(port, uncut, name, self.tally)
                case "leaves":
                    await readers.leave(port, name, self.tally)
                case _:
                    await readers.read(cut, target, self.tally)
        except (StreamLostError, ServerRefusedError) as error:
            if self.stopping:  # a draining server refuses new streams, and exits once all streams have ended
                self.tally.cut_at_shutdown += 1
                self.tally.check_beginning(name, target.records, "cut at shutdown")
            else:
                self.tally.lost += 1
                self.tally.wrong.append(f"{name!r}: {error}")


async def settled(process: SoakServer, tally: Tally, before: dict[str, float] | None = None) -> dict[str, float]:
    """The server's resources, once it has no engines, no readers, and as many tasks and files as `before`."""
    held = await process.ask("held")
    with trio.move_on_after(SETTLE_SECONDS) as scope:
        while True:
            last, held = held, await process.ask("held")
            same = all((before or last)[what] == held[what] for what in ("tasks", "files"))
            if same and not held["engines"] and not held["readers"]:
                break
            await trio.sleep(0.1)
    if scope.cancelled_caught:
        tally.wrong.append(f"the server still has {held}, and had {before} before")
    return held


async def cancel_latencies(process: SoakServer, tally: Tally) -> list[float]:
    """For each client that has disconnected, the seconds until its engine had been cancelled."""
    seconds: list[float] = []
    with trio.move_on_after(SETTLE_SECONDS):
        while tally.closed_at:
            for prompt, moment in (await process.ask("engine ends")).items():
                if prompt in tally.closed_at:  # not one of an earlier round
                    seconds.append(moment - tally.closed_at.pop(prompt))
            await trio.sleep(0.05)
    tally.wrong += [
        f"{prompt!r}: the engine still runs although its client has disconnected" for prompt in tally.closed_at
    ]
    tally.closed_at.clear()
    return seconds


async def soak(*, seconds: float, clients: int, controls: int, warm_up: int, seed: int, path: str) -> Tally:
    """Run the soak test and print the result."""
    tally = Tally()
    cancel_seconds: list[float] = []
    rounds = 0
    async with open_server(path) as process:

        async def one_round() -> None:
            nonlocal rounds
            rounds += 1
            begin = trio.current_time()
            await Round(process, seed * 1000 + rounds, tally).run(prompts(seed, rounds, clients), controls)
            cancel_seconds.extend(await cancel_latencies(process, tally))
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
        await Round(process, seed * 1000, tally).run(names, controls, sigterm_in_the_middle=True)
        with trio.move_on_after(SETTLE_SECONDS):
            await process.process.wait()
        if process.process.returncode != 0:
            tally.wrong.append(f"the server's exit code after SIGTERM is {process.process.returncode}")

    for name, one, other in (("server", before, after), ("clients", own_before, own_after)):
        print(f"{name}:", ", ".join(f"{what} {one[what]:.5g} -> {other[what]:.5g}" for what in HELD))
        more = (
            one["tasks"] != other["tasks"] or one["files"] != other["files"] or other["kept"] > one["kept"] + SLACK_KEPT
        )
        blocks = other["blocks"] - one["blocks"]
        more = more or blocks > SLACK_BLOCKS + SLACK_BLOCKS_PER_STREAM * measured_streams
        if more or other["mib"] - one["mib"] > SLACK_MIB:
            tally.wrong.append(f"{name}: more resources than before, see the numbers above")
    print(
        f"{rounds} rounds, {tally.streams} streams, {tally.records} records, {tally.connections} connections checked, "
        f"{tally.reconnects} reconnects, {tally.compared} streams compared with an uncut reader, "
        f"{tally.cut_at_shutdown} readers cut at shutdown"
    )
    longest = max(cancel_seconds, default=math.nan) * 1000
    print(f"from disconnect to engine cancelled: at most {longest:.1f} ms, of {len(cancel_seconds)} disconnects")
    print(f"lost {tally.lost}, repeated {tally.repeated}, reordered {tally.reordered}, other errors {len(tally.wrong)}")
    return tally


def main() -> int:
    parser = argparse.ArgumentParser(description="Soak test: load and faults on the real server.")
    parser.add_argument("--seconds", type=float, default=180)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--controls", type=int, default=20)
    # The first rounds import modules and fill caches. That is not a leak.
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
