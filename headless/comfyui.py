"""A ComfyUI on this machine: found, started with no page, asked whether it is ready, stopped.

The environment variable COMFYUI_PATH names its folder where that is not comfy-cli's, ``~/comfy/ComfyUI``;
COMFYUI_PYTHON names an interpreter that has both its requirements and this pack's.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..core.errors import LikenessError

START_S = 600.0  # a busy machine, many packs; a server that dies is noticed at once
STOP_S = 15.0
POLL_S = 0.2
# What ComfyUI imports at start, and what this pack imports at work.
NEEDED = ("aiohttp", "av", "torchsde", "alembic", "comfyui_frontend_package", "diffusers", "peft")
# Where installers put its interpreter, seen from its folder.
INTERPRETERS = (
    *(".venv/bin/python", "venv/bin/python", "../venv/bin/python", "../.venv/bin/python"),
    *(".venv/Scripts/python.exe", "venv/Scripts/python.exe", "../python_embeded/python.exe"),
)
ACCELERATED = "import torch as t; a = getattr(t, 'accelerator', t.cuda); print(a.is_available())"


class NoComfyUI(LikenessError):
    """None is installed that could run this pack."""

    def __init__(self, reason: str) -> None:
        super().__init__(
            f"No ComfyUI to run in: {reason}",
            fix="Get one with `git clone https://github.com/comfyanonymous/ComfyUI ~/comfy/ComfyUI && pip "
            "install -r ~/comfy/ComfyUI/requirements.txt`, or set COMFYUI_PATH (and COMFYUI_PYTHON where its "
            "requirements live elsewhere)",
        )


@dataclass(frozen=True)
class Install:
    """A ComfyUI on disk and the interpreter that runs it."""

    path: Path
    python: Path

    @classmethod
    def find(cls) -> Install:
        """Raises NoComfyUI, which says what is missing and how to get one."""
        path = Path(os.getenv("COMFYUI_PATH") or Path.home() / "comfy" / "ComfyUI").expanduser()
        if not (path / "main.py").is_file():
            raise NoComfyUI(f"{path} has no main.py")
        asked = os.getenv("COMFYUI_PYTHON")
        candidates = [Path(asked)] if asked else [Path(sys.executable), *(path / p for p in INTERPRETERS)]
        lacking = f"{asked} is no file" if asked else "no interpreter"
        for python in filter(Path.is_file, candidates):
            missing = _missing_modules(python)
            if not missing:
                return cls(path, python)
            lacking = f"{python} lacks {', '.join(missing)}"
        raise NoComfyUI(lacking)

    def environment(self, **extra: str) -> dict[str, str]:
        """Ours, offline, without the paths that would shadow ComfyUI's own modules."""
        kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        return kept | {"HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"} | extra

    def device_options(self) -> list[str]:
        """``--cpu`` where its torch finds nothing better: ComfyUI does not start there without it."""
        answer = subprocess.run([self.python, "-c", ACCELERATED], capture_output=True, text=True, check=False)
        return [] if answer.stdout.strip() == "True" else ["--cpu"]


def _missing_modules(python: Path) -> list[str]:
    code = "import sys,importlib.util as u;print(*[m for m in sys.argv[1:] if u.find_spec(m) is None])"
    answer = subprocess.run(
        [python, "-c", code, *NEEDED], capture_output=True, text=True, timeout=60, check=False
    )
    return answer.stdout.split() if answer.returncode == 0 else [*NEEDED]


class Process:
    """One ComfyUI server process on a free port of this machine, its words kept in the file ``log_path``."""

    settings: Mapping[str, str] = {}  # its environment, beside ours

    def __init__(self, install: Install, log_path: Path, options: Sequence[str]) -> None:
        self.install, self.log_path, self.options = install, log_path, options
        self.port = _free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def command(self) -> list[str]:
        address = ["--listen", "127.0.0.1", "--port", str(self.port), "--disable-auto-launch"]
        return [str(self.install.python), str(self.install.path / "main.py"), *address, *self.options]

    def start(self, check: Callable[[], None] = lambda: None) -> None:
        """Return when it answers. ``check`` is called meanwhile; what it raises stops the server.

        Raises LikenessError with the end of the log when it dies, or says nothing for START_S.
        """
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                self.command(),
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self.install.environment(**self.settings),
                cwd=self.log_path.parent,
                start_new_session=True,  # a Ctrl-C meant for us is not meant for the server
            )
        try:
            self._wait(check)
        except BaseException:
            self.stop()
            raise

    def _wait(self, check: Callable[[], None]) -> None:
        assert self.process is not None
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                reason = f"ended with {self.process.returncode} at start"
                break
            with contextlib.suppress(OSError), urllib.request.urlopen(self.url + "/system_stats", timeout=30):
                return
            check()
            time.sleep(POLL_S)
        else:
            reason = f"was not ready after {START_S:.0f} s"
        raise LikenessError(f"ComfyUI in {self.install.path} {reason}:\n{self.log_tail()}")

    def stop(self) -> None:
        """As Ctrl-C does; killed only when that is not enough."""
        if self.process is None or self.process.poll() is not None:
            return
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """As a power cut does."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def log(self) -> str:
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def log_tail(self, lines: int = 60) -> str:
        return "\n".join(self.log().splitlines()[-lines:])


@contextlib.contextmanager
def local(check: Callable[[], None]) -> Iterator[str]:
    """The address of the ComfyUI on this machine, running with its own folders and packs while it is needed.

    Raises NoComfyUI when there is none.
    """
    install = Install.find()
    with tempfile.TemporaryDirectory(prefix="likeness-comfyui-") as folder:
        process = Process(install, Path(folder) / "server.log", install.device_options())
        process.start(check)
        try:
            yield process.url
        finally:
            process.stop()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])
