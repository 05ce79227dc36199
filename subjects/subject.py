"""What is to be learned: a few photos of one thing, the words for it, and the photos kept aside to judge."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image


@dataclass(frozen=True, kw_only=True)
class Photo:
    """One picture on disk, with what is known of it. ``sha256`` is of the decoded upright RGB pixels and the
    mask, so that the same picture under another name is the same photo."""

    path: Path
    sha256: str
    width: int
    height: int
    caption: str | None = None  # {} stands for the subject
    mask_path: Path | None = None

    def open(self) -> Image:
        """The picture: upright by EXIF, any mode or depth to 8-bit RGB, alpha composited on white."""
        raise NotImplementedError

    def mask(self) -> np.ndarray | None:
        """The subject's mask as float32 (H, W) in [0, 1] at the picture's size, or None."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One thing to learn. ``photos`` train; ``held_out`` only ever judge."""

    name: str
    class_noun: str
    photos: tuple[Photo, ...]
    held_out: tuple[Photo, ...] = ()
    identifier: str = "sks"  # DreamBooth's rare token; Textual Inversion has its own placeholder
    description: str = ""  # InstructBooth's detail for a rare-looking subject: "triangular"
    warnings: tuple[str, ...] = field(default=(), compare=False)

    @property
    def content_hash(self) -> str:
        """Of the pixels, masks, captions and words; not of paths or of the order on disk."""
        raise NotImplementedError
