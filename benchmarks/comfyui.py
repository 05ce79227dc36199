"""A real ComfyUI for tests and benchmarks: on a scratch folder, with the packs they name, over its API.

with ComfyServer(Install.find(), folder) as server:
    run = server.run(graph)
"""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..headless.comfyui import Install, NoComfyUI, Process

PACK = Path(__file__).resolve().parents[1]
PROBE = {"likeness_probe": Path(__file__).with_name("probe")}  # looks at the server's process
BOTH = {"likeness": PACK, **PROBE}
BYTECODE = {"PYTHONDONTWRITEBYTECODE": ""}  # compiled once, as at a user's: twice as quick from then on
PREVIEWS, TEXT = (1, 4), 3  # kinds of the server's binary messages
QUIET_S = 300.0  # how long a running prompt may say nothing

Graph = dict[str, dict[str, Any]]
Event = dict[str, Any]


# The least that runs.
BLANK: Graph = {
    "1": {
        "class_type": "EmptyImage",
        "inputs": {"width": 16, "height": 16, "batch_size": 1, "color": 0},
    },
    "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}},
}


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


class ComfyServer(Process):
    """One server process on a scratch folder of its own, on the CPU; ``packs`` by folder name."""

    settings = BYTECODE

    def __init__(
        self,
        install: Install,
        base: Path,
        *,
        packs: Mapping[str, Path] | None = None,
        options: Sequence[str] = (),
    ) -> None:
        folders = ["--base-directory", str(base), "--database-url", f"sqlite:///{base}/comfyui.db"]
        super().__init__(install, base / "server.log", [*folders, "--cpu", "--disable-api-nodes", *options])
        self.base = base
        self.modules_at_start: set[str] = set()
        (base / "custom_nodes").mkdir(parents=True, exist_ok=True)
        for kind in ("checkpoints", "loras", "embeddings"):
            (base / "models" / kind).mkdir(parents=True, exist_ok=True)
        (base / "input").mkdir(exist_ok=True)
        for name, path in ({"likeness": PACK} if packs is None else packs).items():
            (base / "custom_nodes" / name).symlink_to(path, target_is_directory=True)

    def __enter__(self) -> ComfyServer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

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

    def idle(self) -> None:
        """Drop what waits, stop what runs, and return when nothing does."""
        self.post("/queue", {"clear": True})
        self.interrupt()
        while self.get("/queue")["queue_running"]:
            time.sleep(0.1)

    def history(self, prompt_id: str) -> dict[str, Any]:
        return dict(self.get(f"/history/{prompt_id}").get(prompt_id, {}))

    def free(self) -> None:
        """Let it forget every node's outputs, and its models: done when a blank prompt after it has ended."""
        self.post("/free", {"unload_models": True, "free_memory": True})
        self.run(BLANK)  # the worker looks at such wishes between two prompts

    def forget(self) -> None:
        """As new: nothing made is left on disk or in the cache of outputs, so that all is made again."""
        self.free()
        for folder in ("output", "temp", "models/loras", "models/embeddings"):
            for path in (self.base / folder).glob("*"):
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def resident_mb(self, field: str = "VmRSS") -> float:
        """Memory that the process holds, in MB, as Linux counts it; "VmHWM" is the most that it ever held."""
        assert self.process is not None
        status = Path(f"/proc/{self.process.pid}/status").read_text(encoding="ascii")
        return float(next(line.split()[1] for line in status.splitlines() if line.startswith(field))) / 1000

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
            return listener.followed(listener.queue(graph), quiet_s)


class Client:
    """One that the server talks to: queues prompts, stops them, and hears what becomes of them."""

    server: ComfyServer

    def queue(self, graph: Graph) -> Run:
        raise NotImplementedError

    def interrupt(self) -> None:
        raise NotImplementedError

    def received(self, quiet_s: float) -> str | bytes:
        """The next message of the websocket. Raises TimeoutError when none comes."""
        raise NotImplementedError

    def follow(self, run: Run, quiet_s: float = QUIET_S) -> Iterator[Event]:
        """The events of ``run``, which collects them, until it has ended and its history is written."""
        while True:
            message = self.received(quiet_s)
            event = event_of(message)
            run.previews += event["type"] == "preview"
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

    def followed(self, run: Run, quiet_s: float = QUIET_S) -> Run:
        """``run`` when it has ended, whatever its end is."""
        try:
            for _ in self.follow(run, quiet_s):
                pass
        except TimeoutError:
            self.interrupt()  # or every later prompt would wait behind this one
            raise
        return run


class Listener(Client):
    """A program with a websocket of its own."""

    def __init__(self, server: ComfyServer) -> None:
        import websocket

        self.server = server
        self.client_id = uuid.uuid4().hex
        url = server.url.replace("http", "ws", 1) + f"/ws?clientId={self.client_id}"
        self.socket = websocket.create_connection(url, timeout=QUIET_S)
        flags = {"type": "feature_flags", "data": {"supports_preview_metadata": True}}
        self.socket.send(json.dumps(flags))

    def queue(self, graph: Graph) -> Run:
        return Run(self.server.queue(graph, self.client_id))

    def interrupt(self) -> None:
        self.server.interrupt()

    def received(self, quiet_s: float) -> str | bytes:
        import websocket

        self.socket.settimeout(quiet_s)
        try:
            message: str | bytes = self.socket.recv()
        except websocket.WebSocketTimeoutException:
            raise TimeoutError(f"ComfyUI said nothing for {quiet_s:.0f} s") from None
        return message


def probe(source: str, stages: Sequence[str], edge: int = 0) -> Graph:
    """Core's numbers against ours on the base model ``source``; see probe/native.py."""
    inputs = {"source": source, "stages": ",".join(stages), "edge": edge}
    return {"1": {"class_type": "TestNative", "inputs": inputs}}


def event_of(message: str | bytes) -> Event:
    """A message of the websocket; a preview, and a node's progress in words, in the form of the JSON ones."""
    if isinstance(message, str):
        return dict(json.loads(message))
    kind = int.from_bytes(message[:4], "big")
    if kind != TEXT:
        return {"type": "preview" if kind in PREVIEWS else "binary", "data": {}}
    end = 8 + int.from_bytes(message[4:8], "big")
    return {
        "type": "progress_text",
        "data": {"node": message[8:end].decode(), "text": message[end:].decode("utf-8", "replace")},
    }


def comfy_command(install: Install, home: Path) -> tuple[list[str], dict[str, str]]:
    """comfy-cli with settings below ``home``, not the developer's own, and the environment to run it in.

    Raises NoComfyUI when it is not installed.
    """
    program = shutil.which("comfy", path=str(install.python.parent)) or shutil.which("comfy")
    if program is None:
        raise NoComfyUI("comfy-cli is not installed (`pip install comfy-cli`)")
    home.mkdir(exist_ok=True)
    environment = install.environment(HOME=str(home), XDG_CONFIG_HOME=str(home / ".config"))
    return [program, "--skip-prompt", "--no-enable-telemetry"], environment


def comfy_run(
    server: ComfyServer, workflow: Path, *options: str, timeout_s: float = 300
) -> tuple[int, list[Event]]:
    """``comfy run --workflow ... --wait`` against ``server``: its exit code and its JSON lines."""
    program, environment = comfy_command(server.install, server.base / "home")
    command = [*program, "--json", "run", "--workflow", str(workflow)]
    command += ["--wait", "--host", "127.0.0.1", "--port", str(server.port), *options]
    answer = subprocess.run(
        command, capture_output=True, text=True, env=environment, timeout=timeout_s, check=False
    )
    lines = [line for line in answer.stdout.splitlines() if line.startswith("{")]
    if not lines:
        raise RuntimeError(f"comfy run said nothing readable:\n{answer.stdout}\n{answer.stderr}")
    return answer.returncode, [json.loads(line) for line in lines]
