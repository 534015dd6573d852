"""Freed memory is reused during a training and returned to the system afterwards."""

import os
import platform
import subprocess
import sys

import pytest

from hsic_lab.training._train import freed_memory_kept

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc only")

# In an interpreter of its own: what other tests left on the heap decides where the next block comes from.
# Resident memory and not page faults is measured: kernels that balance memory between sockets add faults of their own.
CODE = """
import resource
from pathlib import Path
import torch
from hsic_lab.training._train import freed_memory_kept

BYTES = 1 << 28

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

def tensor(size):
    return torch.ones(size // 4)

tensor(1 << 20)
before = resident()
try:
    with freed_memory_kept():
        tensor(BYTES)
        kept = resident()
        assert kept - before > 0.9 * BYTES, "freed memory is kept"
        reused = tensor(BYTES // 2)
        assert resident() - kept < 0.1 * BYTES, "and reused"
        del reused
        raise KeyError("an error on the way changes nothing")
except KeyError:
    assert resident() - before < 0.1 * BYTES, "and returned at the end"
else:
    raise SystemExit(1)
"""


def test_freed_memory_is_reused_and_returned():
    # Dask leaves MALLOC_TRIM_THRESHOLD_ in the environment of a process that has started a cluster.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    subprocess.run([sys.executable, "-c", CODE], check=True, env=environment)


def test_nothing_changes_without_glibc(monkeypatch):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr("ctypes.CDLL", None)
    with freed_memory_kept():
        pass


def test_thresholds_of_the_user_are_left_alone(monkeypatch):
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "131072")
    monkeypatch.setattr("ctypes.CDLL", None)
    with freed_memory_kept():
        pass
