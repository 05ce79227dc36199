"""Language models as proposers: what is parsed, what is refused, and a server that behaves in every way."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from likeness.composing import chat
from likeness.composing.chat import ChatServer, server_from_settings
from likeness.composing.language import LanguageProposer, parse, question
from likeness.composing.layout import Thing
from likeness.composing.proposing import RuleBased, draw_layout
from likeness.composing.validation import Rejected
from likeness.core.errors import LikenessError

THINGS = [Thing(name="tom", noun="cat", aspect=0.8), Thing(name="rex", noun="dog", aspect=1.2)]
GOOD = {
    "scene": "in a garden",
    "objects": [
        {"label": "rex", "ratio": 1.0, "box": [260, 230, 240, 200]},
        {"label": "tom", "ratio": 0.8, "box": [20, 260, 150, 190]},
    ],
}


def changed(**more: Any) -> str:
    return json.dumps({**GOOD, **more})


def test_labels_are_matched_to_subjects() -> None:
    found = parse(f"Sure!\n```json\n{json.dumps(GOOD)}\n``` done", THINGS)
    assert found.boxes["rex"][0] == pytest.approx(260 / 512, abs=1e-4)
    assert found.ratios == {"rex": 1.0, "tom": 0.8}
    by_noun = json.dumps(GOOD).replace('"rex"', '"Dog"').replace('"tom"', '"cat"')
    assert parse(by_noun, THINGS).boxes == found.boxes
    strange = json.dumps(GOOD).replace('"rex"', '"A"').replace('"tom"', '"B"')
    assert parse(strange, THINGS).boxes["tom"] == found.boxes["rex"]  # by place, when all labels are strange


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no JSON object"),
        ("__import__('os').system('x')", "no JSON object"),
        ("{" * 50_000, "no JSON object"),
        ('{"scene": "in a garden"}', "no objects"),
        (changed(scene="../../etc/passwd"), "unusable scene"),
        (changed(scene="in a garden; rm -rf $HOME"), "unusable scene"),
        (changed(scene=["in a garden"]), "unusable scene"),
        (changed(objects=GOOD["objects"][:1]), "missing subject"),
        (changed(objects=[{"label": "tom", "box": [1, 2, 3]}, GOOD["objects"][0]]), "unusable box"),
        (
            changed(objects=[{"label": "tom", "box": [0, 0, 1e9, 1]}, GOOD["objects"][0]]),
            "outside the canvas",
        ),
        (changed(objects=[{"label": "tom", "box": [0, 0, 0, 0]}, GOOD["objects"][0]]), "empty box"),
        (
            changed(objects=[{"label": "tom", "ratio": "1", "box": [0, 0, 9, 9]}, GOOD["objects"][0]]),
            "unusable ratio",
        ),
        (json.dumps(GOOD).replace("1.0", "NaN"), "unusable ratio"),
    ],
)
def test_every_bad_answer_has_its_reason(text: str, reason: str) -> None:
    with pytest.raises(Rejected) as error:
        parse(text, THINGS)
    assert error.value.reason == reason


@given(st.text(max_size=200))
def test_any_text_is_parsed_or_rejected(text: str) -> None:
    with pytest.raises(Rejected):
        parse(text, THINGS)


def test_the_question_names_every_subject() -> None:
    text = json.dumps(question(THINGS))
    assert all(word in text for word in ("tom", "cat", "rex", "dog"))


# --- a real server ------------------------------------------------------------------------------------


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *args: Any) -> None:
        pass

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.seen.append((body, self.headers.get("Authorization")))  # type: ignore[attr-defined]
        kind = self.server.kinds[len(self.server.seen) % len(self.server.kinds)]  # type: ignore[attr-defined]
        status, answer = ANSWERS[kind]
        if kind == "late":
            time.sleep(0.3)
        data = answer if isinstance(answer, bytes) else completion(answer)
        try:
            self.send_response(status)
            if kind == "redirect":
                self.send_header("Location", "http://127.0.0.1:9/steal")
            self.send_header("Content-Length", str(len(data) + (1000 if kind == "cut short" else 0)))
            self.end_headers()
            self.wfile.write(data)
        except OSError:
            pass


def completion(text: Any) -> bytes:
    return json.dumps({"choices": [{"message": {"content": text}}]}).encode()


ANSWERS: dict[str, tuple[int, Any]] = {
    "good": (200, json.dumps(GOOD)),
    "fenced": (200, f"```json\n{json.dumps(GOOD)}\n```"),
    "code": (200, "exec(open('/etc/passwd').read())"),
    "path": (200, changed(scene="/etc/passwd")),
    "million": (200, "a" * 1_000_000),
    "two million": (200, b"x" * 2_200_000),
    "empty": (200, ""),
    "null": (200, None),
    "not json": (200, b"<html>"),
    "cut short": (200, b"{"),
    "late": (200, json.dumps(GOOD)),
    "broken": (500, b"oops"),
    "busy": (429, b"slow down"),
}
FATAL: dict[str, tuple[int, Any]] = {"no key": (401, b""), "no model": (404, b""), "redirect": (302, b"")}
ANSWERS |= FATAL


@pytest.fixture
def server() -> Iterator[Any]:
    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    running.seen, running.kinds = [], ["good"]  # type: ignore[attr-defined]
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield running
    running.shutdown()
    running.server_close()


def model_of(server: Any, **more: Any) -> ChatServer:
    return ChatServer(
        url=f"http://127.0.0.1:{server.server_address[1]}/v1", model="m", **{"timeout_s": 0.15, **more}
    )


def test_two_hundred_calls_and_every_outcome_is_named(server: Any) -> None:
    """Good, bad, late, hostile: a layout, or a reason; nothing else."""
    kinds = [kind for kind in ANSWERS if kind not in FATAL and kind != "late"]
    server.kinds = [*kinds * 3, "late"]
    model = LanguageProposer(model_of(server, timeout_s=5.0))
    quick = LanguageProposer(model_of(server))
    outcomes: Counter[str] = Counter()
    for n in range(200):
        late = server.kinds[(len(server.seen) + 1) % len(server.kinds)] == "late"
        try:
            (quick if late else model).propose(THINGS, seed=n, attempt=0)
            outcomes["layout"] += 1
        except Rejected as no:
            outcomes[no.reason] += 1
    assert sum(outcomes.values()) == 200 and set(outcomes) == {
        "layout", "no JSON object", "unusable scene", "answer too long", "empty answer", "broken answer",
        "server error", "late answer",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "words"), [("no key", "key"), ("no model", "HTTP 404"), ("redirect", "HTTP 302")]
)
def test_what_asking_again_cannot_mend(server: Any, kind: str, words: str) -> None:
    server.kinds = [kind]
    secret = model_of(server, key="s3cret")
    with pytest.raises(LikenessError, match=words) as error:
        draw_layout(LanguageProposer(secret), THINGS, seed=0)
    assert len(server.seen) == 1 and server.seen[0][1] == "Bearer s3cret"
    assert "s3cret" not in str(error.value) and "s3cret" not in repr(secret)


def test_a_good_server_draws_a_layout_and_a_bad_one_falls_back(server: Any) -> None:
    drawn = draw_layout(LanguageProposer(model_of(server, timeout_s=5.0)), THINGS, seed=0)
    assert drawn.proposer == "chat server, m" and drawn.layout.scene == "in a garden" and drawn.tries == 1
    server.kinds = ["code"]
    model = LanguageProposer(model_of(server, timeout_s=5.0))
    drawn = draw_layout(model, THINGS, seed=0, max_tries=2, fallback=RuleBased())
    assert drawn.proposer == "rules" and drawn.rejected == {"no JSON object": 2}


def test_nobody_there_and_addresses_that_are_none() -> None:
    with pytest.raises(LikenessError, match="no chat server"):
        ChatServer(url="http://127.0.0.1:9/v1", model="m", timeout_s=1).complete([])
    for url in ("file:///etc/passwd", "ftp://x/v1", "x", "http://user:pw@host/v1", ""):
        with pytest.raises(LikenessError, match="cannot be used"):
            ChatServer(url=url, model="m")


def test_settings_are_the_machines() -> None:
    with pytest.raises(LikenessError, match=f"{chat.URL_VARIABLE} and {chat.MODEL_VARIABLE}"):
        server_from_settings({})
    known = {chat.URL_VARIABLE: "http://h/v1", chat.MODEL_VARIABLE: "m", chat.KEY_VARIABLE: "k"}
    assert server_from_settings(known) == ChatServer(url="http://h/v1", model="m", key="k")
