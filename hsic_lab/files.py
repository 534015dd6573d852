"""Files that are whole at every moment."""

import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any


def replace_file(path: Path, write: Callable[[Path], Any]) -> None:
    """Let `write` fill a temporary file beside `path`, then rename it: whoever reads sees the old or the new whole."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")  # a pid may be met twice: threads, containers
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
