"""Who scores pictures, and where on this machine their weights are."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from . import host
from .models import TOYBOX

if TYPE_CHECKING:
    from ..backbones.base import BaseModel
    from ..scoring.encoders import Encoders

JUDGES = ["auto", TOYBOX, "standard"]


def roots() -> list[Path]:
    """Folders where encoders and reward models are looked for."""
    return [host.current.models / "likeness"]


def judges_of(base: BaseModel, chosen: str = "auto") -> str:
    """The set of encoders that scores a model's pictures, where none was ``chosen``."""
    if chosen != "auto":
        return chosen
    return TOYBOX if base.source == TOYBOX else "standard"


def open_judges(base: BaseModel, chosen: str = "auto") -> Encoders:
    """LikenessError, which says what to put where, when their weights are not on this machine."""
    from ..scoring.encoders import open_encoders

    return open_encoders(judges_of(base, chosen), device=base.device, roots=roots())
