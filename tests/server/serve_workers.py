"""`crucible serve --workers N` in which each worker keeps its streams in its own memory.

The command refuses that. The tests of the processes themselves do not need a log server. As a worker, which has the
file descriptor of its link as the only argument, this program forgets `log_url`.
"""

from __future__ import annotations

import sys
from contextlib import AbstractAsyncContextManager
from dataclasses import replace

import msgspec

from crucible_trio.cli import main, worker, workers
from crucible_trio.cli.serve import Service, open_service
from crucible_trio.settings import ServiceSettings


def open_in_memory(settings: ServiceSettings) -> AbstractAsyncContextManager[Service]:
    alone = replace(
        settings,
        pipeline=msgspec.structs.replace(settings.pipeline, log_url=None),
        server=msgspec.structs.replace(settings.server, workers=1),
    )
    return open_service(alone)


if sys.argv[1].isdecimal():
    worker.open_service = open_in_memory
    worker.main()
else:
    assert workers.serve_with_workers.__defaults__ is not None
    workers.serve_with_workers.__defaults__ = ([sys.executable, __file__],)
    main()
