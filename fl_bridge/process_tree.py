"""Ending processes with all that descend from them."""

from __future__ import annotations

import contextlib

import psutil


def end_tree(pid: int) -> None:
    """Kill a process and all that descend from it; state is written atomically, so nothing is lost."""
    try:
        process = psutil.Process(pid)
        family = [*process.children(recursive=True), process]
    except psutil.NoSuchProcess:
        return
    end_family(family)


def end_family(family: list[psutil.Process]) -> None:
    """Kill processes, and wait until they are gone."""
    for member in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()
    psutil.wait_procs(family, timeout=10)
