"""The garbage collector of `crucible serve`."""

import subprocess
import sys

# In a process of its own: the collector of the tests stays as it is.
PROGRAM = """
import gc
from crucible_trio.server.collector import collect_rarely

collect_rarely()
full = 0

def count(phase, info):
    global full
    full += phase == "start" and info["generation"] == 2

gc.callbacks.append(count)
kept = [[] for _ in range(300_000)]
print(gc.get_freeze_count() > 10_000, full, end=" ")
class Node: ...
while full == 0:
    node = Node()
    node.itself = node
    kept.append([])
print(sum(isinstance(thing, Node) for thing in gc.get_objects()) < 1_000)
"""


def test_full_collections_are_rare_and_still_come() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "0", "True"]
