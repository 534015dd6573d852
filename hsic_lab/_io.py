"""Atomic file writes."""

import os
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
