"""The embedded target: this package's own runner, in one process per worker."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from ...core.errors import Interrupted, LikenessError, RunLocked
from ...nodes import host
from .. import graph as graphs
from .. import runner
from ..graph import Node
from .targets import Catalogue, JobFailed, Prompt, Result, SlotLost, Task, Tell

PER_SECOND = 4.0  # words about a running job
ORPHAN_S = 20.0  # to write a checkpoint when the batch's own process is gone
STOP_S = 60.0  # to write a checkpoint when asked to stop

NodesFrom = Callable[[], Mapping[str, type[host.io.ComfyNode]]]


@dataclass(frozen=True, kw_only=True)
class Folders:
    """Where jobs read and write: the same for all, so that runs are shared and found again."""

    output: Path
    input: Path
    models: Path | None = None

    def place(self, plain: host.Plain) -> None:
        plain.place(output=self.output, input=self.input, models=self.models)


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What a worker process needs to know. ``cores``: pinned to them where the system can; None: free."""

    folders: Folders
    nodes: NodesFrom
    threads: int
    cores: Sequence[int] | None = None


class Embedded:
    """``workers`` processes, each with its own share of this machine's cores."""

    def __init__(self, folders: Folders, *, workers: int, nodes: NodesFrom = runner.known_classes) -> None:
        self.nodes = nodes
        self.setups = [
            Setup(folders=folders, nodes=nodes, threads=max(1, len(cores)), cores=cores)
            for cores in shares(workers)
        ]

    def catalogue(self) -> Catalogue:
        classes = self.nodes()
        return Catalogue(where="Likeness's own runner", schemas=runner.schemas_of(classes), classes=classes)

    def open(self) -> list[Worker]:
        return [Worker(f"worker {number}", setup) for number, setup in enumerate(self.setups, start=1)]

    def close(self) -> None:
        pass


def shares(workers: int) -> list[list[int]]:
    """This machine's cores dealt out evenly; with more workers than cores, several share one."""
    known = hasattr(os, "sched_getaffinity")
    cores = sorted(os.sched_getaffinity(0)) if known else list(range(os.cpu_count() or 1))
    if workers >= len(cores):
        return [[cores[number % len(cores)]] for number in range(workers)]
    return [cores[number::workers] for number in range(workers)]


class Worker:
    """A slot: one process, started at its first job and anew whenever it died."""

    def __init__(self, name: str, setup: Setup) -> None:
        self.name, self.setup = name, setup
        self.process: Any = None
        self.line: Connection | None = None

    def start(self) -> None:
        """Start the process now, and wait until it is ready; else the first job does."""
        line = self._line()
        line.send_bytes(json.dumps({"hello": True}).encode())
        line.recv_bytes()

    def run(self, task: Task, tell: Tell) -> Result:
        line = self._line()
        try:
            line.send_bytes(json.dumps({"prompt": task.prompt}).encode())
            while True:
                answer = json.loads(line.recv_bytes())
                if "result" in answer:
                    return Result(**answer["result"])
                if "failed" in answer:
                    raise JobFailed(answer["failed"], again=answer["again"])
                if "stopped" in answer:
                    raise Interrupted("Stopped as asked.")
                tell(answer["now"])
        except (EOFError, OSError) as error:
            raise SlotLost(f"{self.name} ended {self._how()}") from error

    def revive(self) -> bool:
        self.close()
        return True  # the next job starts a new process

    def stop(self) -> None:
        self._send({"stop": True})

    def close(self) -> None:
        if self.process is not None:
            self._send({"end": True})
            self.process.join(STOP_S)
            if self.process.is_alive():
                self.process.kill()
                self.process.join()
            self.process = None
        if self.line is not None:
            self.line.close()
            self.line = None

    def _line(self) -> Connection:
        if self.line is None:
            context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
            self.line, theirs = context.Pipe()
            self.process = context.Process(
                target=serve, args=(theirs, self.setup), name=self.name, daemon=True
            )
            self.process.start()
            theirs.close()
        return self.line

    def _send(self, message: dict[str, Any]) -> None:
        if self.line is not None:
            try:
                self.line.send_bytes(json.dumps(message).encode())
            except OSError:
                return  # it is gone already

    def _how(self) -> str:
        if self.process is None:
            return ""
        self.process.join(5)
        code = self.process.exitcode
        return "(killed: out of memory?)" if code == -9 else f"with exit code {code}"


# --- in the worker process ------------------------------------------------------------------------------


def serve(line: Connection, setup: Setup) -> None:
    """Run jobs until told to end, or until the batch's own process is gone."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the batch's to handle: it sends "stop"
    pin(setup)
    plain = host.Plain()
    setup.folders.place(plain)
    host.use(plain)
    jobs: queue.SimpleQueue[Prompt | None] = queue.SimpleQueue()
    classes = setup.nodes()
    threading.Thread(target=_listen, args=(line, plain, jobs), daemon=True).start()
    with suppress(OSError):  # nobody is there to be told: the batch's own process was killed
        while (prompt := jobs.get()) is not None:
            line.send_bytes(json.dumps(answer(prompt, classes, plain, _teller(line))).encode())


def pin(setup: Setup) -> None:
    """Keep this process, and torch in it, to its share of the cores."""
    if setup.cores and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, setup.cores)
    import torch

    torch.set_num_threads(setup.threads)


def _listen(line: Connection, plain: host.Plain, jobs: queue.SimpleQueue[Prompt | None]) -> None:
    try:
        while True:
            message = json.loads(line.recv_bytes())
            if "prompt" in message:
                plain.stop.clear()
                jobs.put(message["prompt"])
            elif "hello" in message:
                line.send_bytes(json.dumps({"ready": True}).encode())
            elif "end" in message:
                plain.stop.set()
                jobs.put(None)
            else:
                plain.stop.set()
    except (EOFError, OSError):  # the batch's process was killed: save and go
        plain.stop.set()
        jobs.put(None)
        time.sleep(ORPHAN_S)
        os._exit(1)


def _teller(line: Connection) -> Tell:
    last_s = -math.inf

    def tell(words: str) -> None:
        nonlocal last_s
        if time.monotonic() - last_s >= 1 / PER_SECOND:
            last_s = time.monotonic()
            line.send_bytes(json.dumps({"now": words}).encode())

    return tell


def answer(prompt: Prompt, classes: runner.Classes, plain: host.Plain, tell: Tell) -> dict[str, Any]:
    """Run one job and say in JSON how it ended. Nothing that a node raises ends the worker."""
    plain.listener = lambda event: tell(host.in_words(event))
    try:
        return {"result": execute(prompt, classes, tell)}
    except Interrupted:
        return {"stopped": True}
    except RunLocked as error:
        return {"failed": str(error), "again": True}
    except LikenessError as error:
        return {"failed": str(error), "again": False}
    except Exception as error:  # a defect, or a machine's trouble: told, and tried again
        return {"failed": f"{type(error).__name__}: {error}", "again": True}


def execute(prompt: Prompt, classes: runner.Classes, tell: Tell) -> dict[str, Any]:
    """Run a prompt and collect what it made and how it scored."""

    def watch(node: Node, what: str) -> None:
        if what == "start":
            tell(node.title or node.class_type)

    graph = graphs.parse(prompt, {})
    results = runner.run(graph, classes, watch)
    return collect({key: output.ui or {} for key, output in results.items()})


def collect(shown: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The files and scores among what nodes showed, in ComfyUI's words for it."""
    made: list[dict[str, Any]] = []
    scores: list[dict[str, Any]] = []
    for ui in shown.values():
        made += ui.get("likeness", [])
        made += [_picture(item) for item in ui.get("images", []) if item.get("type") == "output"]
        scores += ui.get("likeness_scores", [])
    return {"made": made, "scores": scores}


def _picture(item: Mapping[str, str]) -> dict[str, str]:
    return {"kind": "image", "path": "/".join(p for p in (item["subfolder"], item["filename"]) if p)}
