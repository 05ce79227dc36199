"""Every error that a user can cause, in one shape: what was given, what was expected, what to do."""

from __future__ import annotations


class LikenessError(Exception):
    """A mistake that the user can mend.

    ``problem`` says what was given (name the file, node or setting), ``expected`` what would have been
    right, ``fix`` what to do now. The three are joined into the message, each a sentence of its own.
    """

    def __init__(self, problem: str, *, expected: str = "", fix: str = "") -> None:
        self.problem = problem
        self.expected = expected
        self.fix = fix
        parts = [problem, f"Expected: {expected}" if expected else "", fix]
        super().__init__(" ".join(p if p.endswith((".", "!", "?")) else p + "." for p in parts if p))


class NonFiniteLoss(LikenessError):
    """The loss became NaN or infinite. Nothing of that step reaches the disk."""


class MissingPackage(LikenessError):
    """An optional package is needed for what was asked and is not installed."""


class RunLocked(LikenessError):
    """Another process is writing this run folder."""


class Interrupted(Exception):  # not an error: the user asked to stop
    """The user stopped the work. State was saved; the same call goes on where it stopped."""
