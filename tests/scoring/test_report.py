from __future__ import annotations

import json
import math
import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from likeness.core.errors import LikenessError
from likeness.core.tensorfile import write_tensors
from likeness.scoring.report import write_report
from likeness.scoring.runs import ReportRun, read_run
from likeness.scoring.scorecard import Row, Scorecard
from likeness.scoring.thumbnails import thumbnail
from likeness.subjects import load_folder
from likeness.subjects.subject import Subject
from PIL import Image

HOSTILE = "<img src=x onerror=alert(1)> </title></style><script>alert('x')</script> \"' & {trigger} {0}"


class Page(HTMLParser):
    """Elements with their attributes, and the text, as a browser would see them."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(self.words)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.elements if name == tag]


def paint(path: Path, seed: int, size: int = 48) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def subject(tmp_path: Path) -> Subject:
    for i in range(4):
        folder = "held_out" if i > 2 else "."
        paint(tmp_path / "photos" / folder / f"{i}.png", i, size=300 if i == 0 else 48)
        (tmp_path / "photos" / folder / f"{i}.txt").write_text(HOSTILE)
    return load_folder(tmp_path / "photos", class_noun="fish", name="a fish")


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "runs" / "dreambooth-fish-abc"
    config = {"class": "DreamBoothConfig", "fields": {"steps": 40, "rank": 4, "note": HOSTILE}}
    settings = {"method": "dreambooth", "subject": "fish", "config": config, "seed": 7, "prior": None}
    record = {
        "key": "abc",
        "settings": {"class": "Settings", "fields": settings},
        "provenance": {"torch": "2.11.0"},
    }
    for step in (0, 20, 40):
        for i in range(2):
            paint(folder / "samples" / f"step-{step:06d}-{i}.png", step + i)
    (folder / "run.json").write_text(json.dumps(record))
    lines = [json.dumps({"step": s, "loss": 1 / s, "terms": {}, "lr": 1e-4}) for s in range(1, 41)]
    (folder / "history.jsonl").write_text("\n".join(lines) + '\n{"step": 41, "lo')
    scores = [(0, 0.4, 0.4, 0.30), (20, 0.7, 0.7, 0.29), (40, 0.8, 0.6, 0.25)]
    keys = ("step", "train_dino", "held_out_dino", "clip_t")
    (folder / "scores.jsonl").write_text(
        "".join(json.dumps(dict(zip(keys, s, strict=True))) + "\n" for s in scores)
    )
    told = {"kind": "lora", "trigger": f"sks {HOSTILE}", "family": "sd1"}
    metadata = {f"likeness.{key}": json.dumps(value) for key, value in told.items()}
    write_tensors(folder / "concept" / "fish.safetensors", {"x": torch.zeros(2)}, metadata)
    done = {
        "best_step": 20,
        "concept": "concept/fish.safetensors",
        "sha256": "5a" * 32,
        "rule": HOSTILE,
        "verdict": "overfitting since step 20: train 0.70 rising",
    }
    (folder / "done.json").write_text(json.dumps(done))
    return folder


@pytest.fixture
def card(tmp_path: Path) -> Scorecard:
    paint(tmp_path / "drawn.png", 9)
    row = Row(
        subject=HOSTILE, prompt=HOSTILE, text="", scores={"clip_t": 0.3, "clip_i": math.nan, "dino": 0.5}
    )
    thumbnails = {0: thumbnail(tmp_path / "drawn.png", edge=64)}
    protocol = {"metrics": {"clip_t": {"label": HOSTILE, "encoder": HOSTILE}}, "references": {HOSTILE: {}}}
    return Scorecard(label=HOSTILE, rows=(row,), protocol=protocol, thumbnails=thumbnails)


def full(tmp_path: Path, subject: Subject, run_folder: Path, card: Scorecard) -> str:
    run = read_run(run_folder, label=f"DreamBooth {HOSTILE}", sample_prompts=["a photo of {}", HOSTILE])
    path = write_report(
        tmp_path / "report.html",
        title=HOSTILE,
        subject=subject,
        runs=[run],
        scorecards=[card],
        notes=[HOSTILE],
    )
    return path.read_text(encoding="utf-8")


def test_a_run_folder_is_read(run_folder: Path) -> None:
    run = read_run(run_folder)
    assert (run.label, run.subject, run.family, run.total_steps) == ("dreambooth", "fish", "sd1", 40)
    assert len(run.loss) == 40 and run.loss[1] == (2, 0.5)
    assert run.base and run.base.step == 0 and run.best and run.best.step == 20
    assert (run.best_step, run.turning_step) == (20, 20)
    assert list(run.samples) == [0, 20, 40] and len(run.samples[20]) == 2
    assert (
        run.settings["rank"] == "4" and run.settings["prior"] == "none" and run.provenance["run key"] == "abc"
    )
    assert run.learned and run.learned.kind == "lora"
    assert run.warnings == ("history.jsonl: 1 damaged lines were left out",)


def test_the_page_asks_for_nothing_and_runs_nothing(
    tmp_path: Path, subject: Subject, run_folder: Path, card: Scorecard
) -> None:
    page = Page(full(tmp_path, subject, run_folder, card))
    forbidden = {"script", "link", "iframe", "object", "embed", "form", "base", "audio", "video"}
    assert not forbidden & {name for name, _ in page.elements}
    for name, attributes in page.elements:
        assert not any(key.startswith("on") for key in attributes), name
        for key in ("src", "href", "srcset", "xlink:href", "action"):
            value = attributes.get(key) or "#"
            assert value.startswith(("data:image/", "#")), (name, value)
    html = full(tmp_path, subject, run_folder, card)
    style = re.search(r"<style>(.*?)</style>", html, re.S)
    assert style and "url(" not in style[1] and "@import" not in style[1]
    assert set(re.findall(r"https?://[^\"' <]*", html)) <= {"http://www.w3.org/2000/svg"}
    assert any("default-src 'none'" in str(meta.get("content")) for meta in page.all("meta"))


def test_hostile_words_stay_words(
    tmp_path: Path, subject: Subject, run_folder: Path, card: Scorecard
) -> None:
    page = Page(full(tmp_path, subject, run_folder, card))
    assert page.text.count("<script>alert('x')</script>") >= 10
    assert len(page.all("title")) >= 1 and len(page.all("style")) == 1
    assert all(image["src"] != "x" for image in page.all("img"))


def test_the_page_can_be_read_without_seeing_it(
    tmp_path: Path, subject: Subject, run_folder: Path, card: Scorecard
) -> None:
    page = Page(full(tmp_path, subject, run_folder, card))
    assert all(image["alt"] for image in page.all("img"))
    assert all(chart["role"] == "img" and chart["aria-label"] for chart in page.all("svg"))
    assert page.all("html")[0]["lang"] == "en" and len(page.all("h1")) == 1
    levels = [int(name[1]) for name, _ in page.elements if re.fullmatch(r"h\d", name)]
    assert all(after - before <= 1 for before, after in pairwise(levels))
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {link["href"] for link in page.all("a")} <= {f"#{anchor}" for anchor in ids}


def contrast(one: str, other: str) -> float:
    """WCAG 2.1 contrast ratio of two #rrggbb colours."""

    def luminance(color: str) -> float:
        parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))

    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_both_themes_have_contrast() -> None:
    from likeness.scoring.page import STYLE

    style = STYLE.read_text(encoding="utf-8")
    for block in re.findall(r":root \{(.*?)\}", style, re.S):
        colors = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", block))
        for name in ("ink", "muted", "series-1", "good", "warn"):
            assert contrast(colors[name], colors["paper"]) >= 4.5, name
        for name in ("series-2", "series-3", "series-4", "series-5"):
            assert contrast(colors[name], colors["paper"]) >= 3, name


def test_equal_input_gives_equal_bytes(
    tmp_path: Path, subject: Subject, run_folder: Path, card: Scorecard
) -> None:
    assert full(tmp_path, subject, run_folder, card) == full(tmp_path, subject, run_folder, card)


def test_the_story_is_told(tmp_path: Path, subject: Subject, run_folder: Path, card: Scorecard) -> None:
    text = Page(full(tmp_path, subject, run_folder, card)).text
    for part in (
        "A fish, learned from 3 photos, judged on 1 photo it never saw.",
        "DINO went from 0.40 to 0.70, and 97% of the prompt score was kept.",
        "Overfitting since step 20; step 20 was kept.",
        "20 of 40",
        "Copy fish.safetensors to ComfyUI/models/loras.",
        "dreambooth-fish-abc/concept/fish.safetensors",
        "2.11.0",
    ):
        assert part in text, part


def test_toybox_scores_go_by_their_own_name() -> None:
    run = ReportRun(label="x", folder=Path(), family="toybox")
    assert (run.identity_name, run.text_name) == ("Toybox identity", "Toybox CLIP-T")


@pytest.mark.parametrize("damage", ["empty", "torn", "lists", "escape", "unfinished", "no scores"])
def test_a_damaged_run_is_told_not_raised(damage: str, run_folder: Path, tmp_path: Path) -> None:
    if damage == "empty":
        for path in run_folder.iterdir():
            if path.is_file():
                path.write_bytes(b"")
    elif damage == "torn":
        for path in run_folder.rglob("*.*"):
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif damage == "lists":
        for path in run_folder.glob("*.json*"):
            path.write_text("[[[]]]\n3\nnull\n")
    elif damage == "escape":
        done = json.loads((run_folder / "done.json").read_text())
        (run_folder / "done.json").write_text(json.dumps({**done, "concept": "../../secret.safetensors"}))
    elif damage == "unfinished":
        (run_folder / "done.json").unlink()
    else:
        (run_folder / "scores.jsonl").unlink()
    run = read_run(run_folder)
    assert run.warnings
    report = write_report(tmp_path / "report.html", title="damaged", runs=[run])
    assert (
        "left out" in report.read_text()
        or "cannot be read" in report.read_text()
        or "not" in report.read_text()
    )


def test_nothing_to_report_and_no_run_folder(tmp_path: Path) -> None:
    with pytest.raises(LikenessError, match="nothing to report"):
        write_report(tmp_path / "report.html", title="x")
    with pytest.raises(LikenessError, match="no run folder"):
        read_run(tmp_path / "absent")
    assert not list(tmp_path.iterdir())


def test_a_lost_photo_is_named_in_the_page(tmp_path: Path, subject: Subject) -> None:
    subject.photos[1].path.unlink()
    page = write_report(tmp_path / "report.html", title="x", subject=subject).read_text()
    assert "There is no picture" in page


def test_thumbnails_carry_no_metadata(tmp_path: Path) -> None:
    image = Image.new("RGB", (500, 300), "teal")
    exif = Image.Exif()
    exif[0x010E] = "a secret place"
    image.save(tmp_path / "photo.jpg", exif=exif)
    made = thumbnail(tmp_path / "photo.jpg", edge=200)
    assert (made.width, made.height, made.mime) == (200, 120, "image/jpeg")
    assert b"secret" not in made.data and b"Exif" not in made.data
    assert thumbnail(Image.new("RGB", (40, 20)), edge=200).mime == "image/png"
