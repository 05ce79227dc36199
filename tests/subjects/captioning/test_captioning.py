"""Captioners: what they answer, what is read of it, and servers that misbehave."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from likeness.backbones.toybox.pdst import write_dataset
from likeness.core.errors import LikenessError
from likeness.subjects.captioning import Progress, ask, caption_dataset, open_captioner
from likeness.subjects.captioning.base import read_answer
from likeness.subjects.captioning.server import ServerCaptioner
from likeness.subjects.dataset import Dataset, load_dataset
from likeness.subjects.leakage import find_leaks
from PIL import Image

GOOD = [
    "A [SUBJECT] sits on a rock.",
    "A brown [SUBJECT] sleeps in a car.",
    "A [SUBJECT] beside another cup.",
]


@pytest.mark.parametrize(
    ("answer", "wanted"),
    [
        (json.dumps(GOOD), ["A {} sits on a rock.", "A {} sleeps in a car.", "A {} beside."]),
        (f"Sure!\n```json\n{json.dumps(GOOD[:1])}\n```", ["A {} sits on a rock."]),
        ('1. "A [SUBJECT] on ice."\n2) A [SUBJECT] in rain', ["A {} on ice.", "A {} in rain"]),
        ("I cannot help with that request today.", []),
        ("[1, 2, null]", []),
        ("[" * 100000, []),
        ("", []),
    ],
)
def test_answers_are_read_as_they_come(answer: str, wanted: list[str]) -> None:
    assert read_answer(answer, ["cup"]) == wanted


def test_the_request_names_the_noun_and_the_count() -> None:
    assert "7 different" in ask("cup", 7) and "main cup" in ask("cup", 7)


class Scripted:
    """Answers from a list; an exception in it is raised."""

    id = "scripted"

    def __init__(self, *answers: Any) -> None:
        self.answers, self.asked = list(answers), 0

    def write(self, image: Image.Image, noun: str, count: int, attempt: int) -> str:
        answer = self.answers[min(self.asked, len(self.answers) - 1)]
        self.asked += 1
        if isinstance(answer, Exception):
            raise answer
        return str(answer)


@pytest.fixture
def bare(tmp_path: Path) -> Dataset:
    root = write_dataset(tmp_path / "data", subjects=1, test=3)
    next(root.iterdir()).joinpath("captions.json").unlink()
    return load_dataset(root, captioned=False)


def captioned(*args: Any, **more: Any) -> Dataset:
    *items, last = caption_dataset(*args, **more)
    assert isinstance(last, Dataset) and all(isinstance(i, Progress) for i in items)
    return last


def test_toyboxs_captions_come_by_rule_and_tell_nothing(bare: Dataset) -> None:
    done = captioned(bare, open_captioner("toybox"), per_photo=4)
    assert all(texts for entry in done.entries for texts in entry.captions)
    assert not [leak for leak in find_leaks(done) if leak.kind == "caption"]


def test_a_captioner_that_fails_half_way_loses_nothing(bare: Dataset) -> None:
    folder = bare.entries[0].folder
    assert folder is not None
    failing = Scripted(json.dumps(["A {} at sea."]), LikenessError("down"))
    with pytest.raises(LikenessError, match="down"):
        captioned(bare, failing, per_photo=1)
    again = load_dataset(folder.parent, captioned=False)
    assert [len(texts) for texts in again.entries[0].captions] == [1, 0, 0]
    writer = Scripted(json.dumps(["A {} on land."]))
    done = captioned(again, writer, per_photo=1)
    assert [texts[0] for texts in done.entries[0].captions] == ["A {} at sea."] + ["A {} on land."] * 2
    assert writer.asked == 2 and load_dataset(folder.parent).content_hash == done.content_hash


def test_nonsense_is_asked_again_and_then_named(bare: Dataset) -> None:
    writer = Scripted("no", json.dumps(["A {} at sea.", "A {} in bed."]))
    assert captioned(bare, writer, per_photo=2).entries[0].captions[0][1] == "A {} in bed."
    with pytest.raises(LikenessError, match="no usable caption"):
        captioned(bare, Scripted("never"), per_photo=2, overwrite=True)


# --- a server ---------------------------------------------------------------------------------------------


class Server:
    """A chat server on this machine that behaves as told, request after request."""

    def __init__(self) -> None:
        self.script: list[Any] = []
        self.asked: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                outer.asked.append(json.loads(body))
                outer.headers.append(dict(self.headers))
                status, answer, wait_s = outer.script.pop(0) if len(outer.script) > 1 else outer.script[0]
                time.sleep(wait_s)
                self.send_response(status)
                if status == 302:
                    self.send_header("Location", "http://127.0.0.1:9/elsewhere")
                self.end_headers()
                with suppress(OSError):  # the caller went away, as it should from a slow server
                    self.wfile.write(answer)

            def log_message(self, *args: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"

    def says(self, *turns: tuple[int, bytes, float]) -> None:
        self.script = list(turns)


@pytest.fixture
def server() -> Iterator[Server]:
    own = Server()
    yield own
    own.http.shutdown()
    own.http.server_close()


def message(text: Any) -> bytes:
    return json.dumps({"choices": [{"message": {"content": text}}]}).encode()


def write(server: Server, **more: Any) -> str:
    options = {"timeout_s": 5.0, "wait_s": 0.0} | more
    return ServerCaptioner(server.url, "qwen", **options).write(Image.new("RGB", (8, 8)), "cup", 3, 0)


def test_a_server_is_asked_with_picture_and_words(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIKENESS_VLM_KEY", "secret")
    server.says((200, message("hello"), 0))
    assert write(server) == "hello"
    picture, words = server.asked[0]["messages"][0]["content"]
    assert picture["image_url"]["url"].startswith("data:image/jpeg;base64,")
    assert words["text"] == ask("cup", 3)
    assert server.headers[0]["Authorization"] == "Bearer secret"


def test_a_busy_server_is_asked_again(server: Server) -> None:
    server.says((503, b"", 0), (429, b"", 0), (200, message("at last"), 0))
    assert write(server) == "at last" and len(server.asked) == 3


@pytest.mark.parametrize(
    ("turn", "says"),
    [
        ((500, b"broken", 0), "refused: 500"),
        ((401, b"who are you", 0), "LIKENESS_VLM_KEY"),
        ((302, b"", 0), "refused: 302"),
        ((200, b"<html>", 0), "nonsense"),
        ((200, b'{"choices": []}', 0), "nonsense"),
        ((200, message(None), 0), "no text"),
        ((200, b"x" * (2 << 20), 0), "1 MiB"),
        ((200, message("late"), 0.6), "does not answer"),
    ],
)
def test_a_server_that_misbehaves_is_named(server: Server, turn: tuple[int, bytes, float], says: str) -> None:
    server.says(turn)
    with pytest.raises(LikenessError, match=says):
        write(server, timeout_s=0.3 if turn[2] else 5.0, tries=2 if turn[0] == 500 else 1)


def test_a_server_that_is_not_there(server: Server) -> None:
    with pytest.raises(LikenessError, match="does not answer"):
        ServerCaptioner("http://127.0.0.1:9/v1", "qwen", tries=1).write(Image.new("RGB", (8, 8)), "cup", 1, 0)


@pytest.mark.parametrize("url", ["", "localhost:8000", "file:///etc/passwd", "http://user:key@host/v1"])
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(LikenessError, match="no address"):
        open_captioner("server", url=url, model="qwen")
