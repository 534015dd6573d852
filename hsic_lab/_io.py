"""Atomic file writes, locks, what killed writes leave behind, and progress bars."""

import builtins
import io
import math
import os
import re
import shutil
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError


def replace_file(path: Path, write: Callable[[Path], Any]) -> None:
    """Call `write` with the name of a temporary file in the same folder, then rename that file to `path`.

    Readers see the old file or the new one, never a part of it, also after a loss of power. The permissions are those
    of any new file. If `write` raises, the old file stays; OSError names `path`.
    """
    # Threads and containers can share a process id, so the name is random. The temporary file has a folder of its own
    # because libraries may write another file first, under a name that nobody knows.
    folder = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    temporary = folder / path.name
    try:
        folder.mkdir()
        write(temporary)
        if (mode := folder.stat().st_mode & 0o666) != temporary.stat().st_mode & 0o777:
            temporary.chmod(mode)  # safetensors ignores the umask
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except SafetensorError as error:
        raise OSError(f"{path} cannot be written: {error}") from error
    except OSError as error:
        if error.errno is None or (error.filename is not None and folder.name not in str(error.filename)):
            raise  # about another file, which `write` reads
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def remove_leftovers(folder: Path, *names: str) -> None:
    """Remove what killed processes left in the folder while they wrote files of these names (regular expressions)."""
    # Earlier versions wrote files in place of folders, and let safetensors write its .tmpXXXXXX beside them.
    own = re.compile(rf"\.({'|'.join(names)})\.([0-9a-f]{{32}}|tmp)|\.tmp[A-Za-z0-9]{{6}}")
    for path in list(folder.iterdir()) if folder.is_dir() else ():
        if own.fullmatch(path.name):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


@contextmanager
def sole_process(path: Path, wait: bool = False, remove: bool = False) -> Iterator[Callable[[], None]]:
    """Hold the lock file `path` within the block. If another process holds it: wait, or raise BlockingIOError.

    `remove` the file at the end, unless it has content, which is somebody's. The block gets a function that raises
    FileNotFoundError once the file was removed or replaced, so that other processes no longer see the lock.
    """
    try:
        lock = FileLock(path)  # the system releases it when the process that holds it ends
        lock.acquire(timeout=-1 if wait else 0)
    except Timeout:
        raise BlockingIOError(f"another process works in {path.parent}: wait for it or choose another folder") from None
    held = path.stat()

    def check() -> None:
        if not path.exists() or not os.path.samestat(path.stat(), held):
            raise FileNotFoundError(f"{path.parent} was removed or moved while this process worked in it: start again")

    try:
        yield check
    finally:
        with suppress(OSError):
            if remove and os.path.samestat(found := path.stat(), held) and not found.st_size:
                path.unlink()
        lock.release()


class _Lines(io.TextIOBase):
    """A log: what would overwrite a line in a terminal is a line of its own."""

    def write(self, text: str) -> int:
        return sys.stderr.write(text.replace("\r", "\n"))


def progress_options(total: int) -> dict[str, Any]:
    """Options of tqdm: a bar in a terminal or notebook, about ten lines in a log."""
    if sys.stderr.isatty() or hasattr(builtins, "__IPYTHON__"):
        return {"mininterval": 0.5}
    return {"file": _Lines(), "miniters": max(1, total // 10), "mininterval": 0, "maxinterval": math.inf, "ncols": 0}
