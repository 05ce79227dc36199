"""The rater's site, whoever carries it: a request comes in, a response goes out. No sockets here.

A rater's token is in the link's fragment, which browsers do not send: it reaches the server in the
Authorization header alone, and stays out of logs. Nothing that a rater receives names a method: pictures
go by keyed hashes and are encoded anew, so that no metadata of theirs speaks.
"""

from __future__ import annotations

import hashlib
import hmac
import io
import json
import logging
import sqlite3
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ...core.errors import LikenessError
from .ballots import Ballot, Ballots, Rater
from .definition import Study, open_study
from .protocol import PARTS, PASS, Question, asked, fingerprint, first_is_left, questions

log = logging.getLogger(__name__)

MAX_BODY_BYTES = 4096  # a ballot has about 80
PICTURE_EDGE_PX = 1024
MAX_ENCODED = 64  # pictures kept in memory
PAGE = Path(__file__).with_name("page")
FILES = {
    "": ("index.html", "text/html; charset=utf-8"),
    "study.js": ("study.js", "text/javascript; charset=utf-8"),
    "icon.svg": ("icon.svg", "image/svg+xml"),
    "study.css": ("study.css", "text/css; charset=utf-8"),
}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


@dataclass(frozen=True, kw_only=True)
class Request:
    """``path`` is relative to the site, without a leading slash; header names are in lower case."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes = b""


@dataclass(frozen=True, kw_only=True)
class Response:
    status: int
    body: bytes
    content_type: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=lambda: HEADERS)


class Refused(Exception):
    """A request that gets no answer but a reason."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status, self.reason = status, reason


class Site:
    """One study's site. Safe to call from many threads."""

    def __init__(self, study: Study, box: Ballots) -> None:
        self.study, self.box = study, box
        self.questions = questions(study)
        secret = box.secret()
        self._names = {p.path: _name(secret, p.path) for p in study.pictures}
        self._paths = {name: path for path, name in self._names.items()}
        self._encoded: OrderedDict[str, tuple[bytes, str]] = OrderedDict()
        self._lock = threading.Lock()
        self._seats: dict[int, dict[str, Question]] = {}

    @classmethod
    def open(cls, path: Path) -> Site:
        """From a definition's file. Raises LikenessError when the study or its ballots cannot be used."""
        study = open_study(path)
        return cls(study, Ballots(study.ballots_path, fingerprint(study)))

    def answer(self, request: Request) -> Response:
        """Never raises: what goes wrong is a response that says so."""
        try:
            return self._route(request)
        except Refused as refused:
            return _json(refused.status, {"error": refused.reason})
        except (sqlite3.Error, LikenessError, OSError) as error:
            log.error("The study could not answer %s %s: %s", request.method, request.path, error)
            return _json(503, {"error": "The server could not do that now. Your answer was not saved."})

    def _route(self, request: Request) -> Response:
        if request.path == "api/ballot":
            _only(request, "POST")
            check_post(request)
            return self._vote(self._rater(request), request.body)
        _only(request, "GET")
        if request.path == "api/session":
            return _json(200, self._session(self._rater(request)))
        if request.path in FILES:
            name, kind = FILES[request.path]
            return Response(status=200, body=(PAGE / name).read_bytes(), content_type=kind)
        if request.path.startswith("picture/"):
            return self._picture(request.path.removeprefix("picture/"))
        raise Refused(404, "There is nothing here.")

    # --- who asks ---------------------------------------------------------------------------------
    def _rater(self, request: Request) -> Rater:
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        rater = self.box.who(token) if scheme.lower() == "bearer" and token else None
        if rater is None:
            raise Refused(401, "This link is not known. Please open the whole link that you were sent.")
        if rater.withdrawn:
            raise Refused(403, "This invitation was given to another rater.")
        return rater

    def _session(self, rater: Rater) -> dict[str, Any]:
        """All that the page needs: the parts, the questions in this rater's order, the standing answers."""
        standing = self.box.of(rater.rater)
        return {
            "title": self.study.definition.title,
            "parts": {kind: asdict(part) for kind, part in PARTS.items()},
            "questions": [self._shown(rater, q, standing.get(q.id)) for q in self._mine(rater).values()],
        }

    def _mine(self, rater: Rater) -> dict[str, Question]:
        """A rater's questions by id, in the order of the seat."""
        if rater.seat not in self._seats:
            self._seats[rater.seat] = {q.id: q for q in asked(self.study, rater.seat, self.questions)}
        return self._seats[rater.seat]

    def _shown(self, rater: Rater, question: Question, ballot: Ballot | None) -> dict[str, Any]:
        """A question as this rater sees it, without a word of methods."""
        sample = self.study.samples[question.sample]
        pictures = [self._names[sample.pictures[method].path] for method in question.methods]
        if question.kind == "preference" and not first_is_left(self.study, rater.seat, question):
            pictures.reverse()
        return {
            "id": question.id,
            "kind": question.kind,
            "prompt": question.prompt,
            "photos": [self._names[photo.path] for photo in self.study.photos[question.subject]],
            "pictures": pictures,
            **self._standing(rater, question, ballot),
        }

    def _standing(self, rater: Rater, question: Question, ballot: Ballot | None) -> dict[str, Any]:
        if ballot is None:
            return {"answer": None, "revision": 0}
        return {"answer": self._swap(rater, question, ballot.answer), "revision": ballot.revision}

    def _swap(self, rater: Rater, question: Question, answer: str) -> str:
        """From sides, as the page has them, to methods, as ballots do, and back."""
        if question.kind != "preference" or answer == PASS:
            return answer
        left, right = "first", "second"
        if not first_is_left(self.study, rater.seat, question):
            left, right = right, left
        return {"left": left, "right": right, left: "left", right: "right"}[answer]

    # --- votes ------------------------------------------------------------------------------------
    def _vote(self, rater: Rater, body: bytes) -> Response:
        identity, answer, revision = _ballot_fields(body)
        question = self._mine(rater).get(identity)
        if question is None:
            raise Refused(404, "This is none of your questions.")
        allowed = ("left", "right", PASS) if question.kind == "preference" else ("yes", "no", PASS)
        if answer not in allowed:
            raise Refused(400, f"The answer to this question is one of {', '.join(allowed)}.")
        kept = self._swap(rater, question, answer)
        outcome = self.box.cast(rater.rater, question.id, kept, replaces=revision)
        told = {"outcome": outcome.what, **self._standing(rater, question, outcome.ballot)}
        return _json(409 if outcome.what == "conflict" else 200, told)

    # --- pictures ---------------------------------------------------------------------------------
    def _picture(self, name: str) -> Response:
        path = self._paths.get(name)
        if path is None:
            raise Refused(404, "There is no such picture.")
        with self._lock:
            if name not in self._encoded:
                self._encoded[name] = _encode(path)
                while len(self._encoded) > MAX_ENCODED:
                    self._encoded.popitem(last=False)
            body, kind = self._encoded[name]
        headers = {**HEADERS, "Cache-Control": "private, max-age=86400, immutable"}
        return Response(status=200, body=body, content_type=kind, headers=headers)


def check_post(request: Request) -> None:
    """JSON only, small, and from this site's own page. Raises Refused."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise Refused(415, "Ballots are JSON: Content-Type: application/json.")
    if len(request.body) > MAX_BODY_BYTES:
        raise Refused(413, f"A ballot has at most {MAX_BODY_BYTES} bytes.")
    origin = request.headers.get("origin")
    if origin is not None and urlsplit(origin).netloc.lower() != request.headers.get("host", "").lower():
        raise Refused(403, "Ballots are taken from the study's own page only.")
    if request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        raise Refused(403, "Ballots are taken from the study's own page only.")


def _ballot_fields(body: bytes) -> tuple[str, str, int]:
    try:
        told = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Refused(400, "This is not JSON.") from error
    fields = {"question": str, "answer": str, "revision": int}
    if not isinstance(told, dict) or set(told) != set(fields):
        raise Refused(400, "A ballot has a question, an answer and a revision, and nothing else.")
    for name, kind in fields.items():
        if type(told[name]) is not kind:
            raise Refused(400, f"A ballot's {name} is {kind.__name__}.")
    return told["question"], told["answer"], told["revision"]


def _only(request: Request, method: str) -> None:
    if request.method != method:
        raise Refused(405, f"Only {method} is possible here.")


def _json(status: int, value: object) -> Response:
    return Response(status=status, body=json.dumps(value).encode())


def _name(secret: bytes, path: Path) -> str:
    return hmac.new(secret, str(path).encode("utf-8", "surrogateescape"), hashlib.sha256).hexdigest()[:32]


def _encode(path: Path) -> tuple[bytes, str]:
    """Pixels alone, all in the same way: PNG for small pictures, where JPEG's blocks would show."""
    from PIL import Image

    from ...subjects.images import open_picture

    image = open_picture(path)
    image.thumbnail((PICTURE_EDGE_PX, PICTURE_EDGE_PX), Image.Resampling.LANCZOS)
    clean, buffer = Image.frombytes("RGB", image.size, image.tobytes()), io.BytesIO()
    if max(image.size) <= 160:
        clean.save(buffer, "PNG")
        return buffer.getvalue(), "image/png"
    clean.save(buffer, "JPEG", quality=92)
    return buffer.getvalue(), "image/jpeg"
