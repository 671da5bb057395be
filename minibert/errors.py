"""The errors that commands turn into one line, and help with misspelt names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """The caller's flags, settings or files are wrong; the message says what would be right.

    The commands turn it into one line on standard error and exit status 2.
    """


class TextError(InputError):
    """One of several texts, or other inputs, that cannot be answered.

    Attributes:
        reason: what is wrong with it, without its number.
    """

    def __init__(self, number: int, reason: str, noun: str = "text") -> None:
        super().__init__(f"{noun} {number} {reason}")
        self.reason = reason


class MissingExtraError(ImportError):
    """An optional library is not installed; the message holds the line that installs it."""


class DownloadError(RuntimeError):
    """A server, the way to it or what came from there is at fault; the message says what to do.

    The commands turn it into one line on standard error and exit status 1.
    """


class Interrupted(Exception):
    """A run was asked to stop by a signal and has saved its state.

    Attributes:
        status: the exit status that the shell expects, 128 + the signal's number.
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


def did_you_mean(word: str, known: Iterable[object]) -> str:
    """The tail of an error about an unknown name: the nearest known one, else all of them."""
    names = [str(k) for k in known]
    near = difflib.get_close_matches(word, names, n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; known are {', '.join(names)}"
