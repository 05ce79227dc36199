"""Small copies of pictures for scorecards and reports: sharp for small pictures, light for large ones."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from PIL import Image
from torch import Tensor

from ..subjects.images import open_picture
from ..subjects.subject import Photo
from .encoders import to_pil

Source: TypeAlias = Image.Image | Tensor | Photo | Path

PNG_EDGE_PX = 160  # up to here a PNG is small, and JPEG's blocks would show when the picture is enlarged
JPEG_QUALITY = 88


@dataclass(frozen=True)
class Thumbnail:
    data: bytes
    mime: str
    width: int
    height: int

    @property
    def uri(self) -> str:
        return f"data:{self.mime};base64,{base64.b64encode(self.data).decode('ascii')}"

    def open(self) -> Image.Image:
        return Image.open(io.BytesIO(self.data)).convert("RGB")


def picture_of(source: Source) -> Image.Image:
    """Any way to hold a picture, as upright 8-bit RGB. LikenessError names a file that cannot be read."""
    if isinstance(source, Image.Image):
        return source.convert("RGB")
    if isinstance(source, Tensor):
        return to_pil(source)
    opened: Image.Image = open_picture(source if isinstance(source, Path) else source.path)
    return opened


def thumbnail(source: Source, *, edge: int) -> Thumbnail:
    """At most ``edge`` px on the long side, never enlarged; deterministic bytes without metadata."""
    image = picture_of(source)
    image.thumbnail((edge, edge), Image.Resampling.LANCZOS)
    small = max(image.size) <= PNG_EDGE_PX
    buffer = io.BytesIO()
    clean = Image.frombytes("RGB", image.size, image.tobytes())  # drops EXIF, comments and colour profiles
    clean.save(buffer, "PNG", optimize=True) if small else clean.save(
        buffer, "JPEG", quality=JPEG_QUALITY, optimize=True
    )
    return Thumbnail(buffer.getvalue(), "image/png" if small else "image/jpeg", *image.size)
