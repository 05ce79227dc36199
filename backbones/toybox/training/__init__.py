"""How the toy models are trained: one file per part, a table of parts, one resumable loop.

    for progress in training.train(["vae", "unet"], state_dir): ...

Checkpoints and caches lie in ``state_dir`` (``default_state_dir()``); a part that is done is passed over at
once, an unfinished one goes on where it stopped. The order of ``PARTS`` is the order of dependence.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

from ....core.errors import LikenessError
from . import loop, workers
from .loop import Part, Progress, Schedule

PARTS: dict[str, str] = {
    "vae": "vae:VaePart",
    "decoder": "vae:DecoderPart",
    "clip_text": "clip:ClipTextPart",
    "clip": "clip:ClipPart",
    "unet": "unet:UnetPart",
    "judge": "judge:JudgePart",
    "identity": "identity:IdentityPart",
    "detector": "detector:DetectorPart",
    "preference": "preference:PreferencePart",
}
log = logging.getLogger(__name__)


def default_state_dir() -> Path:
    """``likeness/toybox`` in the user's cache folder (XDG_CACHE_HOME, else ~/.cache)."""
    home = os.getenv("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(home) / "likeness" / "toybox"


def part(name: str, state_dir: Path) -> Part:
    """A part by its name in PARTS."""
    if name not in PARTS:
        raise LikenessError(f"Toybox has no part '{name}'", expected=", ".join(PARTS))
    from importlib import import_module

    module, _, kind = PARTS[name].partition(":")
    return getattr(import_module(f".{module}", __name__), kind)(state_dir)  # type: ignore[no-any-return]


def train(
    parts: Iterable[str] = (),
    state_dir: Path | None = None,
    on_event: Callable[[Progress], None] | None = None,
    *,
    start_from: Path | None = None,
    num_workers: int = 1,
) -> Path:
    """Train the named parts (all of them, if none is named) in order of dependence, each to its end.

    ``on_event`` is told the progress every few steps; an exception from it stops the work, and the same call
    goes on from the last checkpoint. Parts without a checkpoint begin with the weights in ``start_from``, if
    given, instead of random ones. With several workers a step's draws differ from those of one.
    Returns the folder of the weights, ``state_dir / "weights"``.
    """
    state_dir = state_dir or default_state_dir()
    todo = [part(name, state_dir) for name in sorted(list(parts) or list(PARTS), key=_rank)]
    shared = [workers.shared(one, num_workers) for one in todo]
    with workers.team(num_workers, partial(_train_all, shared, state_dir, None, start_from)):
        _train_all(shared, state_dir, on_event, start_from)
    return state_dir / "weights"


def _train_all(
    todo: list[Part],
    state_dir: Path,
    on_event: Callable[[Progress], None] | None,
    start_from: Path | None,
) -> None:
    for one in todo:
        for progress in loop.run(one, state_dir, state_dir / "weights", start_from):
            log.info("%s %d/%d %s", progress.part, progress.step, progress.steps, progress.values)
            if on_event:
                on_event(progress)


def _rank(name: str) -> int:
    return list(PARTS).index(name) if name in PARTS else -1


__all__ = ["PARTS", "Progress", "Schedule", "default_state_dir", "part", "train"]
