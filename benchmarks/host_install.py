"""The pack's archive, as the registry gets it: its size, and how long its install into a ComfyUI takes.

A fresh environment gets ComfyUI's requirements, with torch as this machine's ComfyUI has it (the newest torch
is at times without its torchaudio, and then transformers does not import). Then the archive is unpacked and
the pack's own requirements are installed with uv, once to fill its cache and, into another such environment,
once from the cache alone. The server started from there must know every node and draw a picture. Ten minutes
on a quiet machine and as much downloading as the cache lacks; quick: the second install alone, which needs a
filled cache.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path
from typing import Any

from ..core.errors import LikenessError
from ..headless.comfyui import Install
from ..headless.runner import known_classes
from ..nodes.core_nodes import CORE_NODES
from . import bar
from .comfyui import PACK, ComfyServer, comfy_command
from .host_graphs import pictures
from .host_start import own_line

SIZE_BAR_MB, INSTALL_BAR_S = 42.0, 60.0
TORCH_FAMILY = ("torch", "torchvision", "torchaudio")


def run(quick: bool) -> dict[str, Any]:
    install = Install.find()
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        archive = packed(install, tracked(scratch / "source" / "likeness"))
        seconds = {
            kind: installed(install, archive, scratch / kind, offline=kind == "cached")[1]
            for kind in (["cached"] if quick else ["first", "cached"])
        }
        nodes, drawn, line_s = used(Install(install.path, _python(scratch / "cached")), scratch / "cached")
        size_mb = archive.stat().st_size / 1e6
    ours = len(known_classes()) - len(CORE_NODES)
    return {
        "numbers": {"archive, MB": size_mb, "install, s": seconds, "nodes": nodes},
        "bars": [
            bar("MB of the archive", value=size_mb, op="<=", bar=SIZE_BAR_MB),
            bar(
                "seconds to install it, dependencies cached",
                value=seconds["cached"],
                op="<=",
                bar=INSTALL_BAR_S,
            ),
            bar("nodes in a fresh ComfyUI", value=nodes, op="==", bar=ours),
            bar("pictures drawn there", value=drawn, op="==", bar=1),
            bar("seconds in ComfyUI's list of imports", value=line_s, op="<=", bar=0.0),
        ],
        "seeds": [],
    }


# --- the archive ----------------------------------------------------------------------------------


def tracked(folder: Path) -> Path:
    """The tracked files as a repository of their own: comfy-cli writes its archive beside them."""
    listed = subprocess.run(
        ["git", "-C", PACK, "ls-files", "-z"], capture_output=True, text=True, check=False
    )
    if listed.returncode:
        raise LikenessError("This is no git checkout, and the archive is made of what git tracks")
    for name in filter(None, listed.stdout.split("\0")):
        if (PACK / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(PACK / name, folder / name)
    for command in (["init", "-q"], ["add", "-A"]):
        subprocess.run(["git", "-C", folder, *command], check=True)
    return folder


def packed(install: Install, source: Path) -> Path:
    """The archive of a repository. Raises NoComfyUI where comfy-cli is not installed."""
    comfy(install, source, "node", "pack")
    return source / "node.zip"


def comfy(install: Install, folder: Path, *command: str) -> str:
    """comfy-cli's words."""
    program, environment = comfy_command(install, folder.parent)
    done = subprocess.run(
        [*program, *command], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(done.stdout + done.stderr)
    return done.stdout + done.stderr


# --- its install ----------------------------------------------------------------------------------


def installed(install: Install, archive: Path, folder: Path, *, offline: bool) -> tuple[Path, float]:
    """Unpack and install into a fresh environment in ``folder``; the pack's folder, and seconds."""
    python = _python(folder)
    _uv("venv", "--quiet", "--python", sys.executable, str(python.parent.parent), offline=offline)
    torch = _uv("pip", "freeze", "--python", str(install.python), offline=offline).splitlines()
    constraints = folder / "constraints.txt"
    constraints.write_text(
        "\n".join(line for line in torch if line.partition("==")[0] in TORCH_FAMILY), encoding="utf-8"
    )
    comfyui = ("-r", str(install.path / "requirements.txt"), "-c", str(constraints))
    _uv("pip", "install", "--quiet", "--python", str(python), *comfyui, offline=offline)
    pack = folder / "custom_nodes" / "likeness"
    began_s = time.perf_counter()
    with zipfile.ZipFile(archive) as opened:
        opened.extractall(pack)
    _uv(
        *("pip", "install", "--quiet", "--python", str(python), "-r", str(pack / "requirements.txt")),
        offline=offline,
    )
    return pack, time.perf_counter() - began_s


def used(install: Install, base: Path) -> tuple[int, int, float]:
    """A server with the installed pack: its nodes, pictures that it draws, seconds that it says it took."""
    with ComfyServer(install, base, packs={}) as server:
        nodes = sum(name.startswith("Likeness") for name in server.object_info())
        run = server.run(pictures())
        if not run.ok:
            raise RuntimeError(f"The installed pack drew nothing: {run.error}")
        return nodes, len(run.outputs["show"]["images"]), own_line(server)


def _python(folder: Path) -> Path:
    return folder / "environment" / "bin" / "python"


def _uv(*command: str, offline: bool) -> str:
    """What uv says."""
    program = shutil.which("uv", path=str(Path(sys.executable).parent)) or shutil.which("uv")
    if program is None:
        raise LikenessError("uv is not installed", fix="pip install uv")
    told = [program, *command, *(["--offline"] if offline else [])]
    return subprocess.run(told, check=True, stdout=subprocess.PIPE, text=True).stdout
