"""ComfyUI's API as the batch uses it, against a small server that keeps ComfyUI's shapes."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from likeness.core.errors import Interrupted, LikenessError
from likeness.headless import cli
from likeness.headless.batch.checking import Job, Workflow
from likeness.headless.batch.dispatch import Dispatch
from likeness.headless.batch.manifest import DONE, Manifest
from likeness.headless.batch.servers import Server, Servers
from likeness.headless.batch.targets import JobFailed, SlotLost, Task
from likeness.headless.graph import Node

INFO = {
    "Load": {
        "input": {
            "required": {"size": ["INT", {"default": 1, "min": 0, "max": 9}], "kind": [["a", "b"], {}]},
            "optional": {"mask": ["MASK"]},
        },
        "output": ["IMAGE"],
        "output_node": True,
    }
}


class Comfy:
    """A ComfyUI of a few lines. ``outcome``: a prompt's history, an HTTP error, "queued" or "forgotten"."""

    def __init__(self) -> None:
        self.posted: list[dict[str, Any]] = []
        self.others: list[tuple[str, Any]] = []
        self.history: dict[str, Any] = {}
        self.queue: list[str] = []
        self.outcome: Any = success()
        comfy = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                comfy.answer(self, comfy.get(self.path))

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                comfy.answer(self, *comfy.post(self.path, body))

            def log_message(self, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def die(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def answer(self, handler: BaseHTTPRequestHandler, body: Any, code: int = 200) -> None:
        data = json.dumps(body).encode()
        handler.send_response(code)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data)

    def get(self, path: str) -> Any:
        if path.startswith("/history/"):
            ticket = path.rpartition("/")[2]
            return {ticket: self.history[ticket]} if ticket in self.history else {}
        running = [[0, ticket, {}, {}, []] for ticket in self.queue]
        return {"/queue": {"queue_running": running, "queue_pending": []}, "/object_info": INFO}.get(path, {})

    def post(self, path: str, body: Any) -> tuple[Any, int]:
        if path != "/prompt":
            self.others.append((path, body))
            return {}, 200
        self.posted.append(body)
        if isinstance(self.outcome, tuple):
            return self.outcome
        if self.outcome == "queued":
            self.queue.append(body["prompt_id"])
        elif self.outcome != "forgotten":
            self.history[body["prompt_id"]] = self.outcome
        return {"prompt_id": body["prompt_id"], "number": 1, "node_errors": {}}, 200


def success() -> dict[str, Any]:
    image = {"filename": "a.png", "subfolder": "s", "type": "output"}
    shown = {"likeness_scores": [{"label": "x", "dino": 0.5}], "likeness": [{"kind": "LoRA", "path": "/l"}]}
    return {
        "status": {"status_str": "success", "messages": []},
        "outputs": {"1": {"images": [image]}, "2": shown},
    }


def failure(kind: str, message: str) -> dict[str, Any]:
    error = {"node_id": "1", "node_type": "Load", "exception_type": kind, "exception_message": message}
    return {"status": {"status_str": "error", "messages": [["execution_error", error]]}, "outputs": {}}


@pytest.fixture
def comfy() -> Iterator[Comfy]:
    comfy = Comfy()
    yield comfy
    comfy.die()


def task(ticket: str = "t1") -> Task:
    return Task(number=1, key="k", ticket=ticket, prompt={"1": {"class_type": "Load", "inputs": {}}})


def run(comfy: Comfy, ticket: str = "t1") -> Any:
    return Server(comfy.url, grace_s=0.0).run(task(ticket), lambda words: None)


def test_a_job_gives_its_files_and_scores(comfy: Comfy) -> None:
    result = run(comfy)
    assert result.made == [{"kind": "image", "path": "s/a.png"}, {"kind": "LoRA", "path": "/l"}]
    assert result.scores == [{"label": "x", "dino": 0.5}]
    assert comfy.posted[0]["prompt_id"] == "t1" and comfy.posted[0]["prompt"] == task().prompt


def test_a_job_that_the_server_has_already_is_not_sent_again(comfy: Comfy) -> None:
    run(comfy)
    assert run(comfy).scores and len(comfy.posted) == 1


REFUSED = {"node_errors": {"1": {"class_type": "Load", "errors": [{"message": "bad", "details": "size"}]}}}
STOPPED = {"status": {"status_str": "error", "messages": [["execution_interrupted", {}]]}}


@pytest.mark.parametrize(
    ("outcome", "problem", "again"),
    [
        (failure("x.core.errors.LikenessError", "no photos"), "node 1 (Load): no photos", False),
        (failure("torch.OutOfMemoryError", "8 GB"), "node 1 (Load): 8 GB", True),
        ((REFUSED, 400), "Refused (400): node 1 (Load): bad: size", False),
        (({"error": "oops"}, 500), "Refused (500): oops", True),
        (STOPPED, "interrupted", True),
    ],
)
def test_a_failure_has_a_reason_and_a_second_try_where_one_may_help(
    comfy: Comfy, outcome: Any, problem: str, again: bool
) -> None:
    comfy.outcome = outcome
    with pytest.raises(JobFailed) as caught:
        run(comfy)
    assert problem in str(caught.value) and caught.value.again is again


def test_a_server_that_was_started_anew_has_lost_the_job(comfy: Comfy) -> None:
    comfy.outcome = "forgotten"
    with pytest.raises(SlotLost, match="has forgotten its job"):
        run(comfy)


def test_a_stop_takes_the_job_out_of_the_server(comfy: Comfy) -> None:
    comfy.outcome = "queued"
    slot = Server(comfy.url)
    threading.Timer(0.2, slot.stop).start()
    with pytest.raises(Interrupted):
        slot.run(task(), lambda words: None)
    assert comfy.others == [("/queue", {"delete": ["t1"]}), ("/interrupt", {"prompt_id": "t1"})]


def test_a_server_that_dies_in_the_middle_loses_nothing(tmp_path: Path) -> None:
    one, two = Comfy(), Comfy()
    one.outcome = "queued"  # for ever
    target = Servers([one.url, two.url], grace_s=0.1)
    workflow = Workflow({"1": Node("1", "Load", {"size": 1, "kind": "a"})}, target.catalogue(), "w")
    manifest = Manifest(tmp_path / "m.sqlite")
    manifest.plan(Job(key=f"k{n}", settings={"Load.size": n}) for n in range(8))
    threading.Timer(0.3, one.die).start()
    Dispatch(manifest, target.open(), lambda r: workflow.prompt(r.job), retry_s=0.01).run()
    assert manifest.counts()[DONE] == 8 and len(one.posted) == 1
    assert sorted(p["prompt"]["1"]["inputs"]["size"] for p in two.posted) == list(range(8))
    assert {r.slot for r in manifest.records()} == {two.url}
    two.die()


def test_the_servers_say_which_nodes_there_are(comfy: Comfy) -> None:
    catalogue = Servers([comfy.url]).catalogue()
    size, kind, mask = catalogue.schemas["Load"].inputs
    assert (size.get_io_type(), size.max, size.default) == ("INT", 9, 1)
    assert (kind.get_io_type(), kind.options, kind.default) == ("COMBO", ["a", "b"], "a")
    assert mask.optional and catalogue.schemas["Load"].is_output_node
    workflow = Workflow({"1": Node("1", "Load", {"size": 1, "kind": "a"})}, catalogue, "w")
    with pytest.raises(LikenessError, match="from 0 to 9"):
        workflow.with_settings({"Load.size": 10})


def test_addresses_are_understood_or_refused() -> None:
    names = [slot.name for slot in Servers(["a", "http://a:8188", "b:1", "https://c/x/"]).slots]
    assert names == ["http://a:8188", "http://b:1", "https://c:443/x"]
    for wrong in ("ftp://a", "http://a:x", "http://"):
        with pytest.raises(LikenessError, match="is not a server's address"):
            Servers([wrong])
    with pytest.raises(LikenessError, match="No ComfyUI answers"):
        Servers(["127.0.0.1:9"], grace_s=0.0).catalogue()


def workflow_file(folder: Path) -> str:
    path = folder / "w.json"
    path.write_text(json.dumps({"1": {"class_type": "Load", "inputs": {"size": 1, "kind": "a"}}}))
    return str(path)


def test_one_workflow_runs_on_a_server(
    comfy: Comfy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = workflow_file(tmp_path)
    assert cli.main(["run", file, "--server", comfy.url, "--set", "1.size=4", "--json"]) == 0
    assert comfy.posted[0]["prompt"]["1"]["inputs"] == {"size": 4, "kind": "a"}
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last["made"][-1] == {"kind": "LoRA", "path": "/l"}


@pytest.mark.parametrize(
    ("setting", "outcome", "words"),
    [
        ("1.size=99", None, "size"),
        ("1.sise=3", None, "no input sise"),
        ("1.size=3", failure("x.core.errors.LikenessError", "no photos"), "node 1 (Load): no photos"),
    ],
)
def test_what_a_server_cannot_run_is_said(
    comfy: Comfy, tmp_path: Path, capsys: pytest.CaptureFixture[str], setting: str, outcome: Any, words: str
) -> None:
    comfy.outcome = outcome or comfy.outcome
    assert cli.main(["run", workflow_file(tmp_path), "--server", comfy.url, "--set", setting, "--json"]) == 1
    assert words in capsys.readouterr().out
    assert bool(comfy.posted) is bool(outcome)
