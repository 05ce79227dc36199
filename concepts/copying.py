"""A concept's file under another name, where other tools look for it."""

from __future__ import annotations

from itertools import count
from pathlib import Path

from ..core.hashing import hash_file
from ..core.paths import inside, safe_name, write_atomic
from .concept import Concept
from .loading import load_concept


def copy_concept(concept: Concept, folder: Path, name: str) -> Concept:
    """The same file as ``folder/<name>.safetensors``; ``name`` may have subfolders.

    A file of that name with other content stays, and the copy becomes ``<name>-2`` and so on. Raises
    LikenessError for a name that leaves ``folder`` and when the disk refuses.
    """
    safe_name(name.replace("\\", "/").rpartition("/")[2], what="name of the concept")
    for number in count(1):
        relative = f"{name.strip()}{'' if number == 1 else f'-{number}'}.safetensors"
        path = inside(folder, relative, what="name of the concept")
        if not path.exists():
            write_atomic(path, concept.path.read_bytes())
        if hash_file(path) == concept.sha256:
            return load_concept(path)
    raise AssertionError("count does not end")
