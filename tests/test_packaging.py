"""What an installed copy would lack is found here and not by a user."""

from __future__ import annotations

import subprocess
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


def test_the_packs_archive_has_all_that_the_page_asks_for() -> None:
    """.comfyignore leaves out what only developers need: js/docs is not docs."""
    command = ["git", "ls-files", "--cached", "--ignored", "--exclude-from=.comfyignore"]
    asked = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if asked.returncode:
        pytest.skip("this is no git checkout")
    left_out = {Path(line).parts[0] for line in asked.stdout.splitlines()}
    assert {"benchmarks", "docs", "tests"} <= left_out
    assert not left_out & {"js", "workflows", "subgraphs", "locales", "nodes", "backbones"}
