"""The rater's site, without a socket: who may do what, and that nothing tells the methods."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from likeness.scoring.study.results import invite
from likeness.scoring.study.site import MAX_BODY_BYTES, Request, Response, Site
from PIL import Image, PngImagePlugin
from study_maker import make_study

HOST = "study.example"


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site.open(make_study(tmp_path, samples=2).path)
    yield site
    site.box.close()


@pytest.fixture
def token(site: Site) -> str:
    return invite(site.study, site.box, 1)[0][1]


def get(site: Site, path: str, token: str = "") -> Response:
    return site.answer(Request(method="GET", path=path, headers={"authorization": f"Bearer {token}"}))


def session(site: Site, token: str) -> dict[str, Any]:
    return json.loads(get(site, "api/session", token).body)  # type: ignore[no-any-return]


def post(site: Site, token: str, body: Any, **headers: str) -> tuple[int, dict[str, Any]]:
    told = {"authorization": f"Bearer {token}", "content-type": "application/json", "host": HOST}
    told |= {name.replace("_", "-"): value for name, value in headers.items()}
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    reply = site.answer(Request(method="POST", path="api/ballot", headers=told, body=data))
    return reply.status, json.loads(reply.body)


def ballot(question: dict[str, Any], answer: str, revision: int = 0) -> dict[str, Any]:
    return {"question": question["id"], "answer": answer, "revision": revision}


def is_ours(data: bytes) -> bool:
    """The maker of pictures paints a method's number into green."""
    return Image.open(io.BytesIO(data)).convert("RGB").getchannel("G").getextrema() == (0, 0)


def test_an_answer_comes_back_as_it_was_given(site: Site, token: str) -> None:
    for question in session(site, token)["questions"]:
        answer = "left" if question["kind"] == "preference" else "yes"
        assert post(site, token, ballot(question, answer))[0] == 200
    for question in session(site, token)["questions"]:  # a reload
        assert question["answer"] in ("left", "yes") and question["revision"] == 1


def test_left_is_the_picture_that_was_shown_left(site: Site) -> None:
    """Seven raters all choose the picture of one method, whichever side it is on: that method wins."""
    for _, token in invite(site.study, site.box, 7):
        for question in session(site, token)["questions"]:
            if question["kind"] == "preference":
                pixels = [
                    Image.open(io.BytesIO(get(site, f"picture/{p}").body)) for p in question["pictures"]
                ]
                ours = [picture.convert("RGB").getpixel((0, 0))[1] == 0 for picture in pixels]  # type: ignore[index]
                assert sorted(ours) == [False, True]
                assert post(site, token, ballot(question, "left" if ours[0] else "right"))[0] == 200
    assert {b.answer for b in site.box.all()} == {"first"} and len(site.box.all()) == 14


def test_voting_twice_tells_the_answer_that_stands(site: Site, token: str) -> None:
    question = session(site, token)["questions"][-1]
    assert post(site, token, ballot(question, "left"))[1] == {
        "outcome": "saved",
        "answer": "left",
        "revision": 1,
    }
    assert post(site, token, ballot(question, "left"))[1]["outcome"] == "kept"
    status, told = post(site, token, ballot(question, "right"))
    assert status == 409 and (told["answer"], told["revision"]) == ("left", 1)
    assert post(site, token, ballot(question, "right", 1))[1]["outcome"] == "changed"
    assert len(site.box.all()) == 1


def test_nothing_sent_to_a_rater_names_a_method_or_a_file(site: Site, token: str) -> None:
    told = get(site, "api/session", token).body.decode()
    assert not [
        word for word in ("Ours", "Theirs", ".bmp", "soccer/", str(site.study.path.parent)) if word in told
    ]


def test_pictures_lose_their_metadata(tmp_path: Path) -> None:
    study = make_study(tmp_path, samples=2)
    note = PngImagePlugin.PngInfo()
    note.add_text("prompt", "made by Ours")
    for path in (tmp_path / "Ours").rglob("*.bmp"):
        Image.open(path).save(path.with_suffix(".png"), pnginfo=note)
        path.unlink()
    with (site := Site.open(study.path)).box:
        names = session(site, invite(site.study, site.box, 1)[0][1])["questions"][-1]["pictures"]
        for name in names:
            reply = get(site, f"picture/{name}")
            assert reply.content_type == "image/png" and b"made by" not in reply.body


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (b"{", {}, 400),
        (b"[" * 4000, {}, 400),
        (b"\xff\xfe", {}, 400),
        ([], {}, 400),
        ({"question": "q", "answer": "yes"}, {}, 400),
        ({"question": "q", "answer": "yes", "revision": 0, "rater": 2}, {}, 400),
        ({"question": "q", "answer": "yes", "revision": True}, {}, 400),
        ({"question": 1, "answer": "yes", "revision": 0}, {}, 400),
        ({"question": "q", "answer": "yes", "revision": 0}, {}, 404),
        (b" " * (MAX_BODY_BYTES + 1), {}, 413),
        ({}, {"content_type": "text/plain"}, 415),
        ({}, {"content_type": "application/x-www-form-urlencoded"}, 415),
        ({}, {"origin": "https://elsewhere.example"}, 403),
        ({}, {"origin": "null"}, 403),
        ({}, {"sec_fetch_site": "cross-site"}, 403),
        ({}, {"authorization": "Bearer wrong"}, 401),
        ({}, {"authorization": ""}, 401),
    ],
)
def test_what_is_refused(site: Site, token: str, body: Any, headers: dict[str, str], status: int) -> None:
    assert post(site, token, body, **headers)[0] == status
    assert site.box.all() == []


def test_an_answer_of_another_kind_is_refused(site: Site, token: str) -> None:
    first, last = session(site, token)["questions"][0], session(site, token)["questions"][-1]
    for question, answer in ((first, "left"), (last, "yes"), (last, "first"), (first, ""), (last, "second")):
        assert post(site, token, ballot(question, answer))[0] == 400
    assert site.box.all() == []


def test_the_studys_own_page_may_post(site: Site, token: str) -> None:
    question = session(site, token)["questions"][0]
    own = {"origin": f"https://{HOST}", "sec_fetch_site": "same-origin"}
    kind = "application/json; charset=utf-8"
    assert post(site, token, ballot(question, "yes"), content_type=kind, **own)[0] == 200


def test_a_replaced_rater_is_told_so(site: Site, token: str) -> None:
    site.box.replace(1)
    assert get(site, "api/session", token).status == 403
    assert post(site, token, {})[0] == 403


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "nothing", 404),
        ("GET", "picture/" + "0" * 32, 404),
        ("GET", "picture/../../study.json", 404),
        ("GET", "../study.json", 404),
        ("GET", "api/ballot", 405),
        ("POST", "api/session", 405),
        ("PUT", "", 405),
        ("GET", "api/session", 401),
        ("GET", "", 200),
        ("GET", "study.js", 200),
        ("GET", "study.css", 200),
    ],
)
def test_what_is_there(site: Site, method: str, path: str, status: int) -> None:
    reply = site.answer(Request(method=method, path=path, headers={}))
    assert reply.status == status
    assert "default-src 'none'" in reply.headers["Content-Security-Policy"]


def test_a_broken_box_or_picture_is_an_answer_and_not_a_crash(site: Site, token: str) -> None:
    question = session(site, token)["questions"][0]
    site.study.samples[0].pictures["Ours"].path.write_bytes(b"broken")
    names = {name for q in session(site, token)["questions"] for name in q["pictures"]}
    assert sorted({get(site, f"picture/{name}").status for name in names}) == [200, 503]
    site.box.close()
    status, told = post(site, token, ballot(question, "yes"))
    assert status == 503 and "not saved" in told["error"]
