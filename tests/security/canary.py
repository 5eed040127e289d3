"""Pickles that give themselves away: whoever loads one leaves a file behind."""

import pickle
from pathlib import Path


class Canary:
    """Pickled, it is a call that touches a file."""

    def __init__(self, mark: Path) -> None:
        self._mark = mark

    def __reduce__(self) -> tuple:
        return Path.touch, (self._mark,)


def pickled(mark: Path) -> bytes:
    """A pickle that touches `mark` when it is loaded."""
    return pickle.dumps(Canary(mark))
