"""Ctrl-C and SIGTERM between two steps instead of within one."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class StopRequest:
    """The first signal that asked for an end, if any."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def __bool__(self) -> bool:
        return self.signal is not None

    def error(self) -> BaseException:
        """What to raise for it: KeyboardInterrupt for Ctrl-C, else SystemExit with the shell's code, 128 + signal."""
        return KeyboardInterrupt() if self.signal in (None, signal.SIGINT) else SystemExit(128 + self.signal)


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Within the block a first SIGINT or SIGTERM only sets the yielded request; a second one acts at once.

    Outside the main thread signals cannot be caught: there the request is never set.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def note(number: int, frame: object) -> None:
        if request:
            raise request.error()
        request.signal = number

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
