"""Ctrl-C and SIGTERM ask a run to stop gently; a second one stops it at once."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Stop:
    """What has been asked for. `requested`: finish what runs, begin nothing. `now`: finish nothing."""

    def __init__(self) -> None:
        self.signals = 0
        self.interrupts = False

    @property
    def requested(self) -> bool:
        return self.signals > 0

    @property
    def now(self) -> bool:
        return self.signals > 1

    @contextmanager
    def interrupting(self) -> Iterator[None]:
        """For work that may end anywhere: a signal inside raises KeyboardInterrupt; so does entering after two."""
        if self.now:
            raise KeyboardInterrupt
        self.interrupts = True
        try:
            yield
        finally:
            self.interrupts = False


@contextmanager
def stop_on_signals() -> Iterator[Stop]:
    """Count SIGINT and SIGTERM instead of dying of them. Outside the main thread signals are left alone."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def count(_number: int, _frame: FrameType | None) -> None:
        stop.signals += 1
        if stop.interrupts:
            raise KeyboardInterrupt

    before = {number: signal.signal(number, count) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
