"""ComfyUI servers as a target: each runs one job at a time, over the API that its own page uses."""

from __future__ import annotations

import json
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from ...core.errors import Interrupted, LikenessError
from .embedded import collect
from .targets import Catalogue, JobFailed, Result, SlotLost, Task, Tell

ANSWER_S = 30.0  # for one call; a busy server answers late
GRACE_S = 10.0  # of silence before a server counts as lost
POLL_S = (0.05, 1.0)  # between two looks at a running job: at first, and at most


class Silent(Exception):
    """The server did not answer."""


@dataclass(frozen=True, kw_only=True)
class RemoteInput:
    """An input as a server's ``/object_info`` describes it, in the words of ``host.io``."""

    id: str
    io_type: str
    optional: bool = False
    default: Any = None
    min: Any = None
    max: Any = None
    options: Sequence[str] = ()
    force_input: bool = False
    control_after_generate: bool = False

    def get_io_type(self) -> str:
        return self.io_type


@dataclass(frozen=True)
class RemoteOutput:
    io_type: str


@dataclass(frozen=True, kw_only=True)
class RemoteSchema:
    node_id: str
    inputs: Sequence[RemoteInput]
    outputs: Sequence[RemoteOutput]
    is_output_node: bool


class Servers:
    """One slot per URL. Jobs must mean the same on all of them: same packs, models and pictures."""

    def __init__(self, urls: Sequence[str], *, grace_s: float = GRACE_S) -> None:
        self.slots = [Server(url, grace_s=grace_s) for url in dict.fromkeys(map(_address, urls))]

    def catalogue(self) -> Catalogue:
        """What every server that answers knows. Raises LikenessError when none does."""
        known = [nodes for nodes in (slot.nodes() for slot in self.slots) if nodes is not None]
        names = ", ".join(slot.name for slot in self.slots)
        if not known:
            raise LikenessError(
                f"No ComfyUI answers at {names}",
                fix="Start it (python main.py --listen), or mend the address",
            )
        common = set(known[0]).intersection(*known)
        schemas: Any = {name: _schema(name, known[0][name]) for name in common}
        return Catalogue(where=names, schemas=schemas)

    def open(self) -> list[Server]:
        return self.slots

    def close(self) -> None:
        pass


@dataclass
class Server:
    """A slot: one ComfyUI. ``name`` is its address."""

    name: str
    grace_s: float = GRACE_S
    running: str = field(default="", init=False)  # the prompt id
    stopping: threading.Event = field(default_factory=threading.Event, init=False)

    def nodes(self) -> dict[str, Any] | None:
        with suppress(Silent, JobFailed):
            return dict(self._call("/object_info"))
        return None

    def run(self, task: Task, tell: Tell) -> Result:
        self.stopping.clear()
        try:
            self.running = task.ticket if self._has(task.ticket) else self._queue(task)
            tell("queued")
            return self._ended(self._followed(tell))
        except Interrupted:
            self._cancel()
            raise
        except Silent as error:
            raise SlotLost(f"{self.name} does not answer ({error})") from error
        finally:
            self.running = ""

    def revive(self) -> bool:
        try:
            self._once("/system_stats")
        except (Silent, JobFailed):
            return False
        return True

    def stop(self) -> None:
        self.stopping.set()

    def close(self) -> None:
        pass

    # --- one job ------------------------------------------------------------------------------------
    def _queue(self, task: Task) -> str:
        """The prompt's id: our ticket, where the server lets us choose."""
        answer = self._call("/prompt", {"prompt": task.prompt, "prompt_id": task.ticket})
        return str(answer["prompt_id"])

    def _followed(self, tell: Tell) -> dict[str, Any]:
        """Wait for the job's history."""
        wait_s, missing = POLL_S[0], 0
        while True:
            if self.stopping.wait(wait_s):
                raise Interrupted("Stopped as asked.")
            if history := self._history(self.running):
                return history
            state = self._in_queue(self.running)
            missing = 0 if state else missing + 1
            if missing > 1 and not self._history(self.running):  # twice: it moves to the history in between
                raise SlotLost(f"{self.name} was started anew and has forgotten its job")
            tell(state or "ending")
            wait_s = min(wait_s * 1.5, POLL_S[1])

    def _cancel(self) -> None:
        with suppress(Silent, JobFailed):
            self._once("/queue", {"delete": [self.running]})
            self._once("/interrupt", {"prompt_id": self.running})

    def _has(self, ticket: str) -> bool:
        return bool(self._history(ticket) or self._in_queue(ticket))

    def _history(self, ticket: str) -> dict[str, Any]:
        return dict(self._call(f"/history/{ticket}").get(ticket) or {})

    def _in_queue(self, ticket: str) -> str:
        queue = self._call("/queue")
        for name, words in (("queue_running", "running"), ("queue_pending", "queued")):
            if any(ticket in item[:2] for item in queue.get(name, [])):
                return words
        return ""

    def _ended(self, history: Mapping[str, Any]) -> Result:
        status = history.get("status") or {}
        messages = dict(status.get("messages") or [])
        if "execution_interrupted" in messages:
            raise JobFailed(f"It was interrupted on {self.name}", again=True)
        if status.get("status_str") == "error":
            raise _job_error(messages.get("execution_error", {}))
        return Result(**collect(history.get("outputs") or {}))

    # --- calls --------------------------------------------------------------------------------------
    def _call(self, path: str, body: Any = None) -> Any:
        """As ``_once``, with patience: a server may be too busy for a moment."""
        deadline = time.monotonic() + self.grace_s
        while True:
            try:
                return self._once(path, body)
            except Silent:
                if time.monotonic() > deadline or self.stopping.wait(0.5):
                    raise

    def _once(self, path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.name + path, data, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=ANSWER_S) as answer:
                text = answer.read()
            return json.loads(text) if text else None
        except urllib.error.HTTPError as error:
            raise _refusal(error) from None
        except (OSError, ValueError) as error:  # ValueError: half an answer
            raise Silent(str(getattr(error, "reason", error))) from error


def _address(url: str) -> str:
    """``host``, ``host:port`` or a URL, as ``http://host:port``."""
    full = url if "://" in url else f"http://{url}"
    try:
        parts = urllib.parse.urlsplit(full)
        port = parts.port or {"http": 8188, "https": 443}[parts.scheme]
    except (ValueError, KeyError):
        parts, port = None, 0
    if parts is None or not parts.hostname:
        raise LikenessError(f"{url!r} is not a server's address", expected="http://host:8188")
    return f"{parts.scheme}://{parts.hostname}:{port}{parts.path.rstrip('/')}"


def _refusal(error: urllib.error.HTTPError) -> JobFailed:
    """A server's 400 in words: the node, the input, what is wrong with it."""
    text = error.read().decode("utf-8", "replace")
    try:
        answer = json.loads(text)
        told = [
            f"node {key} ({node.get('class_type')}): {problem.get('message')}: {problem.get('details')}"
            for key, node in (answer.get("node_errors") or {}).items()
            for problem in node.get("errors", [])
        ]
        words = "; ".join(told) or str(answer.get("error", text))
    except (ValueError, AttributeError, TypeError):
        words = text[:300]
    return JobFailed(f"Refused ({error.code}): {words}", again=error.code >= 500)


def _job_error(error: Mapping[str, Any]) -> JobFailed:
    node = f"node {error.get('node_id')} ({error.get('node_type')})"
    users = str(error.get("exception_type", "")).endswith("LikenessError")  # told what to mend: no second try
    return JobFailed(f"{node}: {str(error.get('exception_message', 'it failed')).strip()}", again=not users)


def _schema(name: str, info: Mapping[str, Any]) -> RemoteSchema:
    given = info.get("input") or {}
    inputs = [
        _input(key, spec, optional=kind == "optional")
        for kind in ("required", "optional")
        for key, spec in (given.get(kind) or {}).items()
    ]
    outputs = [RemoteOutput(",".join(t) if isinstance(t, list) else str(t)) for t in info.get("output") or []]
    return RemoteSchema(
        node_id=name, inputs=inputs, outputs=outputs, is_output_node=bool(info.get("output_node"))
    )


def _input(name: str, spec: Sequence[Any], *, optional: bool) -> RemoteInput:
    kind, options = spec[0], dict(spec[1]) if len(spec) > 1 and isinstance(spec[1], dict) else {}
    choices = kind if isinstance(kind, list) else options.get("options") or ()
    return RemoteInput(
        id=name,
        io_type="COMBO" if isinstance(kind, list) else str(kind),
        optional=optional,
        default=options.get("default", next(iter(choices), None)),
        min=options.get("min"),
        max=options.get("max"),
        options=[str(choice) for choice in choices],
        force_input=bool(options.get("forceInput")),
        control_after_generate=bool(options.get("control_after_generate")),
    )
