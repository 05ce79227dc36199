"""What ComfyUI's registry looks at: the archive's files, the version, and the workflow that publishes it."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEXT = {".py", ".js", ".css", ".html", ".md", ".json", ".toml", ".txt"}
# What its scanner is known to flag a version for, most of them whatever the line really does.
TRIGGERS = {
    "network": r"\.connect\(|\.bind\(|\.send\(|aiohttp\.ClientSession",
    "a blacklisted address": r"raw\.githubusercontent\.com",
    "the environment": r"os\.environ\.get\(",
    "a shell": r"\bimport subprocess|\bos\.system\(|\bos\.popen\(",
    "a pickle that runs": r"\bpickle\.loads?\(|\bmarshal\.|torch\.load\((?!.*weights_only=True)",
    "code from elsewhere": r"trust_remote_code['\"]?[=:] ?True",
}
BANNED_CALLS = {"eval", "exec", "compile", "__import__"}


@cache
def shipped() -> list[Path]:
    """The archive: what git tracks, less ``.comfyignore``."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("NOT CHECKED: this is no git checkout")
    ignored = (ROOT / ".comfyignore").read_text(encoding="utf-8").split()
    kept = [name for name in listed.stdout.splitlines() if not any(_matches(name, i) for i in ignored)]
    return [ROOT / name for name in kept if (ROOT / name).is_file()]


def _matches(name: str, pattern: str) -> bool:
    place = pattern.removeprefix("/")
    return name.startswith(place) if place.endswith("/") else name == place


def test_the_archive_has_what_the_page_shows() -> None:
    """In git's language "docs/" is every folder of that name: js/docs, the nodes' help, would go with it."""
    patterns = (ROOT / ".comfyignore").read_text(encoding="utf-8").split()
    assert all(pattern.startswith("/") for pattern in patterns)
    names = {path.relative_to(ROOT).as_posix() for path in shipped()}
    pages = {path.relative_to(ROOT).as_posix() for path in (ROOT / "js" / "docs").glob("*.md")}
    assert pages and pages <= names
    assert {"__init__.py", "requirements.txt", "workflows/quickstart.json", "LICENSE"} <= names
    assert any(name.startswith("backbones/toybox/weights/") for name in names)
    assert not any(name.startswith(("tests/", "docs/", ".github/")) for name in names)


def found(pattern: str, text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if re.search(pattern, line)]


@pytest.mark.parametrize("what", TRIGGERS)
def test_nothing_shipped_looks_like(what: str) -> None:
    texts = [path for path in shipped() if path.suffix in TEXT]
    assert len(texts) > 200  # the archive is there to be looked at
    lines = {
        str(path.relative_to(ROOT)): lines
        for path in texts
        if (lines := found(TRIGGERS[what], path.read_text(encoding="utf-8")))
    }
    assert not lines


@pytest.mark.parametrize(
    ("what", "line"),
    [
        ("network", "socket" + ".connect(address)"),
        ("the environment", 'os.environ.get("HOME")'),
        ("a pickle that runs", 'torch.load(path, map_location="cpu")'),
        ("code from elsewhere", "trust_remote_code=True"),
        ("a shell", "import subprocess"),
    ],
)
def test_the_patterns_find_what_they_are_for(what: str, line: str) -> None:
    assert found(TRIGGERS[what], line)
    assert not found(TRIGGERS[what], "torch.load(path, weights_only=True)")


def test_no_code_is_made_from_text() -> None:
    for path in (path for path in shipped() if path.suffix == ".py"):
        calls = [node for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.Call)]
        named = {call.func.id for call in calls if isinstance(call.func, ast.Name)}
        assert not named & BANNED_CALLS, path


@pytest.mark.skipif(sys.version_info < (3, 11), reason="tomllib is new in Python 3.11")
def test_the_changelog_begins_with_the_version_that_would_be_published() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    headings = re.findall(r"^## (\S+)(.*)$", changelog, re.MULTILINE)
    assert headings[0][0] == project["version"]
    assert re.fullmatch(r" - (unreleased|\d{4}-\d\d-\d\d)", headings[0][1])


def test_the_publish_workflow_publishes_what_was_tested() -> None:
    text = (ROOT / ".github" / "workflows" / "publish.yml").read_text(encoding="utf-8")
    steps = [text.index(part) for part in ("CHANGELOG.md", "make test", "Comfy-Org/publish-node-action@")]
    assert steps == sorted(steps)
    assert "secrets.REGISTRY_ACCESS_TOKEN" in text and "tags:" in text
