"""Freed memory is reused during a training and returned to the system afterwards."""

import platform
import subprocess
import sys

import pytest

from hsic_lab.training._train import freed_memory_kept

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc only")

# In an interpreter of its own: what other tests left on the heap decides where the next block comes from.
CODE = """
import resource
from pathlib import Path
import torch
from hsic_lab.training._train import freed_memory_kept

BYTES, PAGE = 1 << 28, resource.getpagesize()

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE

def page_faults_of_a_tensor(size):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(size // 4)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

try:
    with freed_memory_kept():
        page_faults_of_a_tensor(BYTES)
        kept = resident()
        assert page_faults_of_a_tensor(BYTES // 2) < BYTES / PAGE / 100
        raise KeyError("an error on the way changes nothing")
except KeyError:
    assert kept - resident() > 0.9 * BYTES
else:
    raise SystemExit(1)
"""


def test_freed_memory_is_reused_and_returned():
    subprocess.run([sys.executable, "-c", CODE], check=True)


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
