"""``likeness run --server URL``: the same workflow file on a ComfyUI; what it makes stays in its folders.

``--server local`` starts the one on this machine for the time of the run.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ..core.errors import LikenessError
from ..nodes import host
from ..trainers.events import Phase
from . import graph as graphs
from .batch.checking import Workflow
from .batch.servers import Servers
from .batch.targets import JobFailed, SlotLost, Task
from .display import Display

LOCAL = "local"


def run(server: str, path: Path, assignments: Sequence[str], plain: host.Plain, display: Display) -> None:
    """Queue the file at ``path`` with its ``node.input=value`` assignments, and wait for its end.

    Inputs are checked here against the server's own schemas. Raises LikenessError for what the server
    refuses or fails at, with its node; an interrupt takes the prompt off the server.
    """
    with _address(server, plain, display) as url:
        _run(url, path, assignments, plain, display)


@contextmanager
def _address(server: str, plain: host.Plain, display: Display) -> Iterator[str]:
    if server != LOCAL:
        yield server
        return
    try:
        from .comfyui import local
    except ImportError as error:  # a pack's archive starts no processes, and leaves that file out
        raise LikenessError(
            "This copy of Likeness cannot start a ComfyUI",
            expected="the Python package, or a clone of the repository",
            fix=f"Start ComfyUI yourself and name its address instead of {LOCAL!r}",
        ) from error
    node = graphs.Node("", "server", title="Starting ComfyUI")
    display.node(node, "start")
    with local(plain.check) as url:
        display.node(node, "end")
        yield url


def _run(url: str, path: Path, assignments: Sequence[str], plain: host.Plain, display: Display) -> None:
    target = Servers([url])
    catalogue = target.catalogue()
    workflow = Workflow(graphs.load(path, catalogue.schemas), catalogue, path.name)
    graph = workflow.with_settings(dict(map(_assignment, assignments)))
    prompt = graphs.to_api({key: graph[key] for key in workflow.order})
    slot = target.open()[0]
    node = graphs.Node("", "server", title=f"ComfyUI at {slot.name}")
    display.node(node, "start")

    def tell(state: str) -> None:
        display.event(Phase(state, 0, 1))
        plain.check()

    try:
        result = slot.run(Task(number=0, key="", ticket=str(uuid.uuid4()), prompt=prompt), tell)
    except (JobFailed, SlotLost) as error:
        raise LikenessError(str(error)) from error
    display.node(node, "end")
    display.finished(result.made)


def _assignment(text: str) -> tuple[str, str]:
    target, equals, value = text.partition("=")
    if not equals or "." not in target:
        raise LikenessError(f"--set {text} is not understood", expected="node.input=value")
    return target, value
