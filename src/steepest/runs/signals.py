"""Ctrl-C and SIGTERM: finish what must be finished, then stop."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(KeyboardInterrupt):
    """The process was asked to stop; everything that a resumed run needs is saved."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.signum = signum

    @property
    def exit_code(self) -> int:
        """What a shell expects of a process that a signal ended."""
        return 128 + self.signum


class Stop:
    """While entered, a signal raises `Interrupted`: at once, or inside `deferred()` where the code asks for it.

    A second signal acts as if this class were not there, for those who cannot wait.
    """

    def __init__(self) -> None:
        self._signum: int | None = None
        self._deferred = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():  # elsewhere Python allows no handlers
            self._before = {s: signal.signal(s, self._handle) for s in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        self._signum = signum
        self._restore()
        if not self._deferred:
            self.check()

    def _restore(self) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)
        self._before = {}

    @property
    def requested(self) -> bool:
        """Whether a signal has come."""
        return self._signum is not None

    def check(self) -> None:
        """Raise `Interrupted` if a signal has come."""
        if self._signum is not None:
            raise Interrupted(self._signum)

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Hold signals back in this block; the block ends with `Interrupted` if one has come."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False
        self.check()
