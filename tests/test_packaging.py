"""What an installed copy would lack is found here and not by a user."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.skipif(sys.version_info < (3, 11), reason="tomllib is new in Python 3.11")
def test_every_package_of_the_tree_is_installed() -> None:
    import tomllib

    listed = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    outside = {"tests", "build", "dist"}
    folders = [
        path.parent.relative_to(ROOT)
        for path in ROOT.rglob("__init__.py")
        if not outside & set(path.relative_to(ROOT).parts)
        and not any(part.startswith(".") for part in path.relative_to(ROOT).parts)
    ]
    assert sorted(listed["packages"]) == sorted(".".join(("likeness", *folder.parts)) for folder in folders)
