"""The ComfyUI on this machine that tests may use, if there is one.

The environment variables COMFYUI_PATH (its folder) and COMFYUI_PYTHON (an interpreter that has both its
requirements and ours) name another one than the default.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

HOW_TO_GET_ONE = (
    "No ComfyUI to test in: {}. Get one with `git clone https://github.com/comfyanonymous/ComfyUI "
    "~/comfy/ComfyUI && pip install -r ~/comfy/ComfyUI/requirements.txt`, or set COMFYUI_PATH (and "
    "COMFYUI_PYTHON where its requirements live elsewhere)"
)
# What ComfyUI imports at start, and what this pack imports at work.
NEEDED = ("aiohttp", "av", "torchsde", "alembic", "comfyui_frontend_package", "diffusers", "peft")


class NoComfyUI(Exception):
    """None is installed that could run the tests; the text says how to get one."""


@dataclass(frozen=True)
class Install:
    """A ComfyUI on disk and the interpreter that runs it."""

    path: Path
    python: Path

    @classmethod
    def find(cls) -> Install:
        path = Path(os.environ.get("COMFYUI_PATH") or Path.home() / "comfy" / "ComfyUI").expanduser()
        if not (path / "main.py").is_file():
            raise NoComfyUI(HOW_TO_GET_ONE.format(f"{path} has no main.py"))
        asked = os.environ.get("COMFYUI_PYTHON")
        candidates = (
            [asked] if asked else [sys.executable, path / ".venv/bin/python", path / "venv/bin/python"]
        )
        lacking = "no interpreter"
        for python in map(Path, candidates):
            if not python.is_file():
                continue
            missing = _missing_modules(python)
            if not missing:
                return cls(path, python)
            lacking = f"{python} lacks {', '.join(missing)}"
        raise NoComfyUI(HOW_TO_GET_ONE.format(lacking))

    def environment(self, **extra: str) -> dict[str, str]:
        """Ours, quiet and offline, without the paths that would shadow ComfyUI's own modules."""
        kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        return kept | {"HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "2"} | extra


def _missing_modules(python: Path) -> list[str]:
    code = "import sys,importlib.util as u;print(*[m for m in sys.argv[1:] if u.find_spec(m) is None])"
    answer = subprocess.run(
        [python, "-c", code, *NEEDED], capture_output=True, text=True, timeout=60, check=False
    )
    return answer.stdout.split() if answer.returncode == 0 else [*NEEDED]
