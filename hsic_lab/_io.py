"""Atomic file writes, and progress bars."""

import builtins
import math
import os
import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any


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


class _Lines:
    """A log: what would overwrite a line in a terminal is a line of its own."""

    def write(self, text: str) -> None:
        sys.stderr.write(text.replace("\r", "\n"))

    def flush(self) -> None:
        sys.stderr.flush()


def progress_options(total: int) -> dict[str, Any]:
    """Options of tqdm: a bar in a terminal or notebook, about ten lines in a log."""
    if sys.stderr.isatty() or hasattr(builtins, "__IPYTHON__"):
        return {"mininterval": 0.5}
    return {"file": _Lines(), "miniters": max(1, total // 10), "mininterval": 0, "maxinterval": math.inf, "ncols": 0}
