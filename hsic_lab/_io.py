"""Atomic file writes and memory-mapped reads."""

import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def replace_file(path: Path, write: Callable[[Path], Any]) -> None:
    """Call `write` with the name of a temporary file in the same folder, then rename that file to `path`.

    Readers see the old file or the new one, never a part of it. If `write` raises, the old file stays.
    """
    # Threads and containers can share a process id, so the name is random.
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def map_file(path: Path) -> Tensor:
    """Map the bytes of a file into memory as a uint8 vector; a page is read from disk when it is first used.

    The mapping is private: the file may be read-only, and writing to the tensor does not change the file.
    """
    return torch.from_file(str(path), shared=False, size=path.stat().st_size, dtype=torch.uint8)
