"""What a training frees stays with the process: on a CPU, clearing fresh pages costs as much as half its arithmetic."""

import ctypes
import platform
from collections.abc import Iterator
from contextlib import contextmanager

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # parameters of mallopt, from malloc.h
_KEPT = 1 << 30
_MOST_BY_ITSELF = 1 << 25  # bytes to which glibc raises its thresholds on its own; twice that for the first


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Within the block, glibc hands out freed memory again, up to 1 GiB a block, before it asks for more; then it gives
    back what is left.

    On its own it returns large blocks to the system at once, which clears every page of the next one, and a training
    step frees and asks for all its activations. For the whole process; elsewhere than on glibc nothing changes.
    """
    if platform.libc_ver()[0] != "glibc":
        yield
        return
    libc = ctypes.CDLL(None)
    libc.mallopt(_MMAP_THRESHOLD, _KEPT)
    libc.mallopt(_TRIM_THRESHOLD, _KEPT)
    try:
        yield
    finally:
        libc.mallopt(_MMAP_THRESHOLD, _MOST_BY_ITSELF)
        libc.mallopt(_TRIM_THRESHOLD, 2 * _MOST_BY_ITSELF)
        libc.malloc_trim(0)
