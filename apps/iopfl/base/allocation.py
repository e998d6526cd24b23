"""How this process takes memory from the system: large blocks are kept for the next pass of a network.

glibc gives each block of more than 32 MB (128 KB at first) back at once, and each pass of a network needs a few such
blocks: up to two fifths of the CPU time were the kernel's, which clears their pages anew. One arena, because those of
threads hold no block of more than 64 MB.
"""

from __future__ import annotations

import ctypes
import os

_KEPT = 256 << 20
"""Bytes: larger blocks, those of whole volumes, are still given back at once."""
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8  # mallopt(3)
_SETTINGS = {
    _MMAP_THRESHOLD: (_KEPT, "MALLOC_MMAP_THRESHOLD_"),
    _TRIM_THRESHOLD: (2 * _KEPT, "MALLOC_TRIM_THRESHOLD_"),
    _ARENA_MAX: (1, "MALLOC_ARENA_MAX"),
}


def keep_blocks() -> bool:
    """Have the process keep blocks of memory that it used; whoever set glibc's variables keeps their values.

    Returns:
        Whether its allocator is glibc's, so that it does.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library
        return False
    return all(mallopt(key, value) for key, (value, variable) in _SETTINGS.items() if variable not in os.environ)
