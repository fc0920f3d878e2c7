"""`python -m benchmarks.pinned CORE COMMAND...`: become this command, on this core. It dies with its parent.

A separate program, because running code between fork and exec is not safe in a process that may have threads.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1

if __name__ == "__main__":
    core, *command = sys.argv[1:]
    os.sched_setaffinity(0, {int(core)})
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    os.execvp(command[0], command)
