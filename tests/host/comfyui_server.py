"""A real ComfyUI for tests: found on disk, started with this pack alone, driven over its API, stopped."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from comfyui_install import Install, NoComfyUI

PACK = Path(__file__).resolve().parents[2]
START_S = 600.0  # a busy machine; a server that dies is noticed at once
STOP_S = 15.0
QUIET_S = 300.0  # how long a running prompt may say nothing

Graph = dict[str, dict[str, Any]]
Event = dict[str, Any]


class Rejected(Exception):
    """The server refused a prompt. ``error`` is its summary, ``node_errors`` what it says of each node."""

    def __init__(self, status: int, answer: dict[str, Any]) -> None:
        super().__init__(f"{status}: {json.dumps(answer)[:2000]}")
        self.status = status
        self.error: Any = answer.get("error")
        self.node_errors: dict[str, Any] = answer.get("node_errors") or {}


@dataclass
class Run:
    """What became of one prompt."""

    prompt_id: str
    events: list[Event] = field(default_factory=list)  # the server's JSON messages, in order
    previews: int = 0
    history: dict[str, Any] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        return bool(self.history.get("status", {}).get("status_str") == "success")

    @property
    def outputs(self) -> dict[str, Any]:
        """What each output node showed, by node id."""
        return dict(self.history.get("outputs", {}))

    @property
    def error(self) -> dict[str, Any]:
        """The execution error's data (node_id, node_type, exception_message ...), or nothing."""
        return next((e["data"] for e in self.events if e["type"] == "execution_error"), {})

    @property
    def interrupted(self) -> bool:
        return any(e["type"] == "execution_interrupted" for e in self.events)

    def of_type(self, kind: str) -> list[dict[str, Any]]:
        return [e["data"] for e in self.events if e["type"] == kind]


class ComfyServer:
    """One server process on a scratch folder of its own. ``with ComfyServer(install, folder) as server``."""

    def __init__(self, install: Install, base: Path, *, packs: Mapping[str, Path] | None = None) -> None:
        self.install, self.base = install, base
        self.log_path = base / "server.log"
        self.port = _free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None
        self.modules_at_start: set[str] = set()
        (base / "custom_nodes").mkdir(parents=True, exist_ok=True)
        for kind in ("checkpoints", "loras", "embeddings"):
            (base / "models" / kind).mkdir(parents=True, exist_ok=True)
        (base / "input").mkdir(exist_ok=True)
        for name, path in ({"likeness": PACK} if packs is None else packs).items():
            (base / "custom_nodes" / name).symlink_to(path, target_is_directory=True)

    # --- life -------------------------------------------------------------------------------------
    def __enter__(self) -> ComfyServer:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def command(self, *extra: str) -> list[str]:
        options = ["--base-directory", str(self.base), "--database-url", f"sqlite:///{self.base}/comfyui.db"]
        options += ["--listen", "127.0.0.1", "--port", str(self.port), "--cpu"]
        options += ["--disable-auto-launch", "--disable-api-nodes", *extra]
        return [str(self.install.python), str(self.install.path / "main.py"), *options]

    def start(self) -> ComfyServer:
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                self.command(),
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self.install.environment(),
                cwd=self.base,
                start_new_session=True,  # a Ctrl-C meant for pytest is not meant for the server
            )
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise RuntimeError(
                    f"ComfyUI ended with {self.process.returncode} at start:\n{self.log_tail()}"
                )
            with contextlib.suppress(OSError):
                self.get("/system_stats")
                return self
            time.sleep(0.2)
        self.stop()
        raise RuntimeError(f"ComfyUI was not ready after {START_S:.0f} s:\n{self.log_tail()}")

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

    # --- the API ----------------------------------------------------------------------------------
    def get(self, path: str) -> Any:
        return self._call(path, None)

    def post(self, path: str, body: Any) -> Any:
        return self._call(path, body)

    def _call(self, path: str, body: Any) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=30) as answer:
            text = answer.read()
        return json.loads(text) if text else None

    def queue(self, graph: Graph, client_id: str | None = None, **extra: Any) -> str:
        """The new prompt's id. Raises Rejected when the server finds fault with the graph."""
        body: dict[str, Any] = {"prompt": graph, **extra}
        if client_id:
            body["client_id"] = client_id
        try:
            return str(self.post("/prompt", body)["prompt_id"])
        except urllib.error.HTTPError as error:
            raise Rejected(error.code, json.loads(error.read() or b"{}")) from None

    def interrupt(self) -> None:
        self.post("/interrupt", {})

    def history(self, prompt_id: str) -> dict[str, Any]:
        return dict(self.get(f"/history/{prompt_id}").get(prompt_id, {}))

    def object_info(self) -> dict[str, Any]:
        return dict(self.get("/object_info"))

    @contextlib.contextmanager
    def listen(self) -> Iterator[Listener]:
        listener = Listener(self)
        try:
            yield listener
        finally:
            listener.socket.close()

    def run(self, graph: Graph, *, quiet_s: float = QUIET_S) -> Run:
        """Queue a graph and follow it to its end, whatever that is."""
        with self.listen() as listener:
            run = Run(self.queue(graph, listener.client_id))
            try:
                for _ in listener.follow(run, quiet_s):
                    pass
            except TimeoutError:
                self.interrupt()  # or every later prompt would wait behind this one
                raise
        return run


class Listener:
    """A browser's ears: the websocket of one client."""

    def __init__(self, server: ComfyServer) -> None:
        import websocket

        self.server = server
        self.client_id = uuid.uuid4().hex
        url = server.url.replace("http", "ws", 1) + f"/ws?clientId={self.client_id}"
        self.socket = websocket.create_connection(url, timeout=QUIET_S)
        flags = {"type": "feature_flags", "data": {"supports_preview_metadata": True}}
        self.socket.send(json.dumps(flags))

    def _received(self) -> str | bytes:
        import websocket

        try:
            message: str | bytes = self.socket.recv()
        except websocket.WebSocketTimeoutException:
            raise TimeoutError(f"ComfyUI said nothing for {self.socket.gettimeout():.0f} s") from None
        return message

    def follow(self, run: Run, quiet_s: float = QUIET_S) -> Iterator[Event]:
        """The events of ``run``, which collects them, until it has ended and its history is written."""
        self.socket.settimeout(quiet_s)
        while True:
            message = self._received()
            if isinstance(message, bytes):
                run.previews += int.from_bytes(message[:4], "big") in (1, 4)
                continue
            event = json.loads(message)
            if event.get("data", {}).get("prompt_id", run.prompt_id) != run.prompt_id:
                continue
            run.events.append(event)
            yield event
            if event["type"] in ("execution_success", "execution_error", "execution_interrupted"):
                break
        deadline = time.monotonic() + 10
        while not run.history and time.monotonic() < deadline:  # written just after the last event
            run.history = self.server.history(run.prompt_id)
            time.sleep(0.02)


def comfy_run(
    server: ComfyServer, workflow: Path, *options: str, timeout_s: float = 300
) -> tuple[int, list[Event]]:
    """``comfy run --workflow ... --wait`` against ``server``: its exit code and its JSON lines."""
    program = shutil.which("comfy", path=str(server.install.python.parent)) or shutil.which("comfy")
    if program is None:
        raise NoComfyUI("comfy-cli is not installed: `pip install comfy-cli`")
    command = [
        program,
        "--skip-prompt",
        "--no-enable-telemetry",
        "--json",
        "run",
        "--workflow",
        str(workflow),
    ]
    command += ["--wait", "--host", "127.0.0.1", "--port", str(server.port), *options]
    home = server.base / "home"  # its own settings, not the developer's
    home.mkdir(exist_ok=True)
    environment = server.install.environment(HOME=str(home), XDG_CONFIG_HOME=str(home / ".config"))
    answer = subprocess.run(
        command, capture_output=True, text=True, env=environment, timeout=timeout_s, check=False
    )
    lines = [line for line in answer.stdout.splitlines() if line.startswith("{")]
    if not lines:
        raise RuntimeError(f"comfy run said nothing readable:\n{answer.stdout}\n{answer.stderr}")
    return answer.returncode, [json.loads(line) for line in lines]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
