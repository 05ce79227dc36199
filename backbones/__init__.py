"""The models that learn: one interface (``base.py``), a file per family, and the built-in Toybox."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .base import Backbone, BaseModel

_lock = threading.Lock()
_opened: dict[object, Backbone] = {}  # at most one: a second model would not fit beside the first


def open_backbone(base: BaseModel) -> Backbone:
    """The loaded model behind ``base``, kept until another one is asked for or its files change.

    Raises LikenessError for what cannot be opened. Nothing is imported before the first call.
    """
    from .loading import load_backbone, source_files

    with _lock:
        stats = [(str(f), f.stat().st_size, f.stat().st_mtime_ns) for f in source_files(base) if f.is_file()]
        key = (base, tuple(stats))
        if key not in _opened:
            _opened.clear()  # before loading, so that the two never share the memory
            _opened[key] = load_backbone(base)
        return _opened[key]


def close_backbone() -> None:
    """Forget the kept model, so that its memory is free once nobody else holds it."""
    with _lock:
        _opened.clear()
