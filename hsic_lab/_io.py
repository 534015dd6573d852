"""Files that are whole at every moment."""

import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def replace_file(path: Path, write: Callable[[Path], Any]) -> None:
    """Let `write` fill a temporary file beside `path`, then rename it: whoever reads sees the old or the new whole."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")  # a pid may be met twice: threads, containers
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def map_file(path: Path) -> Tensor:
    """The bytes of a file as a uint8 vector that the system reads when they are touched.

    The mapping is private: the file can be read-only, and writing to the tensor does not change it.
    """
    return torch.from_file(str(path), shared=False, size=path.stat().st_size, dtype=torch.uint8)
