"""Signals that stop a run: the question under way is finished first; a second Ctrl-C stops at once.

After either stop every answer that is written stays, and resuming makes exactly the others.  One
signal leaves whole questions; a second one may come between two answers of a question.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_WORDS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}


class Interruption:
    """What a run asks between two questions: has somebody asked it to stop?

    Attributes:
        asked: a signal came.
        word: what happened, as the user is told.
        under_way: what is to be finished before the run stops, such as "question 3"; empty where
            nothing would be lost, and a signal then stops at once.
    """

    def __init__(self) -> None:
        self.asked = False
        self.word = _WORDS[signal.SIGINT]
        self.under_way = ""

    def stop_if_asked(self) -> None:
        """Raises :class:`KeyboardInterrupt` if a signal came: nothing is under way now."""
        self.under_way = ""
        if self.asked:
            raise KeyboardInterrupt

    def heard(self, number: int, frame: FrameType | None) -> None:
        """The handler: the first signal is noted, and Ctrl-C after it raises where it arrives."""
        del frame
        if self.asked and number != signal.SIGINT:
            return  # a supervisor may send SIGTERM to the group and to the process
        if not self.asked:
            self.word = _WORDS[signal.Signals(number)]
        stop_now = self.asked or not self.under_way
        self.asked = True
        if stop_now:
            raise KeyboardInterrupt
        again = "again " if number == signal.SIGINT else ""
        _tell(f"{self.word}: finishing {self.under_way}; press Ctrl-C {again}to stop now")


@contextmanager
def interruptible() -> Iterator[Interruption]:
    """SIGINT and SIGTERM as an :class:`Interruption` hears them; the old handlers come back.

    A signal that this process was told to ignore stays ignored, as after ``nohup`` or ``&``.
    Python hears signals in its main thread only: in another one nothing is changed.
    """
    interruption = Interruption()
    if threading.current_thread() is not threading.main_thread():
        yield interruption
        return
    heard = [number for number in _WORDS if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, interruption.heard) for number in heard}
    try:
        yield interruption
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def _tell(line: str) -> None:
    """Past ``sys.stderr``, in whose own writing the signal may have come."""
    start = "\n" if sys.stderr.isatty() else ""  # below the progress bar
    os.write(2, f"{start}{line}\n".encode())
