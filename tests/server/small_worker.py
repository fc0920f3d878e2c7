"""A worker for the tests of the supervisor. It serves lines of text over its sockets, and follows a plan.

The plan is JSON: a folder in which workers count their lives, and for each worker what its lives do. The last entry
counts for all later lives.
"""

from __future__ import annotations

import json
import os
import select
import socket
import sys
from pathlib import Path

import msgspec

from crucible_trio.server.worker_link import (
    CannotStart,
    Collect,
    Count,
    Counted,
    Drain,
    Message,
    Ready,
    Setup,
    Stop,
    Total,
    frame,
)
from crucible_trio.totals import Family

link = socket.socket(fileno=int(sys.argv[1]))


def receive_exactly(length: int) -> bytes:
    data = link.recv(length, socket.MSG_WAITALL)
    if len(data) < length:
        sys.exit(44)  # the supervisor has ended
    return data


def receive() -> Message:
    return msgspec.msgpack.decode(receive_exactly(int.from_bytes(receive_exactly(4))), type=Message)


setup = receive()
assert isinstance(setup, Setup)
plan = json.loads(setup.settings)
lives = plan["workers"][setup.number - 1]
life = 0
while True:
    try:
        Path(plan["folder"], f"{setup.number}-{life}").touch(exist_ok=False)
        break
    except FileExistsError:
        life += 1
todo, _, argument = lives[min(life, len(lives) - 1)].partition(" ")

if todo == "exit":
    sys.exit(int(argument))
if todo == "refuse":
    link.sendall(frame(CannotStart(argument)))
    sys.exit(2)
if todo == "wait":
    Path(argument).read_bytes()  # a named pipe
link.sendall(frame(Ready(f"worker {setup.number} serves")))

counted = 0.0


def families() -> list[Family]:
    return [
        Family(name="lines", text="Lines", kind="counter", samples={("lines_total",): counted}),
        Family(name="lives", text="Lives", kind="gauge", samples={("lives",): 1.0}),
        Family(name="up", text="Up", kind="state", samples={("up",): float(setup.number - 1)}),
    ]


listener = socket.socket(fileno=setup.sockets[0])
while True:
    readable, _, _ = select.select([link, listener], [], [])
    if link in readable:
        match receive():
            case Drain() if todo != "deaf":
                sys.exit(0)
            case Stop():
                sys.exit(1)
            case Count():
                link.sendall(frame(Counted(families())))
    if listener in readable:
        try:
            client, _ = listener.accept()
        except BlockingIOError:  # another worker was faster
            continue
        client.setblocking(True)
        line = client.makefile().readline().strip()
        counted += 1
        answer: object = [setup.number, life, os.getpid()]
        if line == "metrics":
            link.sendall(frame(Collect(families())))
            while not isinstance(message := receive(), Total):
                if isinstance(message, Count):
                    link.sendall(frame(Counted(families())))
            answer = {name[0]: value for family in message.families for name, value in family.samples.items()}
        client.sendall(json.dumps(answer).encode())
        client.close()
