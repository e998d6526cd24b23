"""Memory that a pass of a network used is there for the next: the kernel clears no page of it again."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from label_server import PACKAGES

PROGRAM = """
import resource, threading
from iopfl.base.allocation import keep_blocks
assert keep_blocks()
def work():
    for _ in range(20):
        block = b"x" * (48 << 20)
        del block
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        block = b"x" * (48 << 20)
        del block
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
thread = threading.Thread(target=work)
(thread.start(), thread.join()) if {in_thread} else work()
"""
PAGES_OF_A_BLOCK = (48 << 20) // 4096


def count_faults(*, in_thread: bool, **variables: str) -> int:
    clean = {key: value for key, value in os.environ.items() if not key.startswith("MALLOC_")}
    environment = {**clean, "PYTHONPATH": str(PACKAGES), **variables}
    words = [sys.executable, "-c", PROGRAM.replace("{in_thread}", str(in_thread))]
    return int(subprocess.run(words, env=environment, check=True, capture_output=True, text=True).stdout)


@pytest.mark.parametrize("in_thread", [False, True], ids=["main thread", "thread of a server"])
def test_a_block_is_taken_from_the_system_once(in_thread):
    assert count_faults(in_thread=in_thread) < PAGES_OF_A_BLOCK


def test_who_sets_glibcs_own_variables_keeps_them():
    given_back = str(1 << 20)
    faults = count_faults(in_thread=False, MALLOC_MMAP_THRESHOLD_=given_back, MALLOC_TRIM_THRESHOLD_=given_back)
    assert faults == 0 or faults > PAGES_OF_A_BLOCK  # 0: with huge pages always on, nothing can be seen
