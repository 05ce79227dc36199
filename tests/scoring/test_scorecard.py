from __future__ import annotations

import csv
import io
import json
import math
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from likeness.core.errors import LikenessError
from likeness.scoring.cardpicture import draw_card, save_card
from likeness.scoring.encoders import Encoders
from likeness.scoring.score import Picture, Progress, References, score_images, scorecard_of
from likeness.scoring.scorecard import Row, Scorecard
from torch import Tensor


@dataclass
class ColourEncoder:
    """Stands in for CLIP and DINO: the feature is the mean colour; texts name a colour."""

    id: str = "colour"
    label: str = "Colour"
    weights_hash: str = "0" * 64
    preprocessing: str = "mean"
    calls: int = 0
    largest: int = 0

    def encode(self, images: list[Tensor]) -> Tensor:
        self.calls, self.largest = self.calls + 1, max(self.largest, len(images))
        features = torch.stack([image.mean(dim=(1, 2)) for image in images])
        return features / features.norm(dim=-1, keepdim=True)

    def encode_text(self, texts: list[str]) -> Tensor:
        words = ("red", "green", "blue")
        return torch.stack([torch.tensor([float(word in text) for word in words]) for text in texts])


RED, GREEN, BLUE = (torch.eye(3)[i].view(3, 1, 1).expand(3, 8, 6) for i in range(3))


@pytest.fixture
def encoders() -> Encoders:
    return Encoders(clip=ColourEncoder(), dino=ColourEncoder(label="Shade"))


FISH = References(photos=[RED, (RED + GREEN) / 2], class_noun="fish", trigger="sks fish")


def test_pictures_become_rows_and_means(encoders: Encoders) -> None:
    pictures = [
        Picture(image=RED, prompt="a red sks fish", subject="fish", seed=1),
        Picture(image=BLUE, prompt="a red sks fish", subject="fish", seed=2),
        Picture(image=GREEN, prompt="a green sks fish", subject="fish"),
    ]
    events = list(score_images(pictures, {"fish": FISH}, encoders, label="a row", batch=2))
    assert events[:-1] == [Progress(2, 5), Progress(4, 5), Progress(5, 5)]
    card = events[-1]
    assert isinstance(card, Scorecard)
    half = math.sqrt(0.5)
    assert [row.text for row in card.rows] == ["a red fish", "a red fish", "a green fish"]
    assert [row.scores["clip_t"] for row in card.rows] == pytest.approx([1, 0, 1], abs=1e-6)
    assert [row.scores["dino"] for row in card.rows] == pytest.approx([(1 + half) / 2, 0, half / 2], abs=1e-3)
    assert card.means["clip_t"].value == pytest.approx(0.75, abs=1e-6)
    assert card.summary() == "a row: Colour-T 0.750, Colour-I 0.390, Shade 0.390 (3 pictures)"


def test_the_held_out_protocol_compares_with_one_photo(encoders: Encoders) -> None:
    pictures = [Picture(image=RED, prompt="red", subject="fish", photo=i) for i in range(2)]
    card = scorecard_of(score_images(pictures, {"fish": FISH}, encoders))
    assert [row.scores["dino"] for row in card.rows] == pytest.approx([1, math.sqrt(0.5)], abs=1e-3)
    assert card.protocol["metrics"]["dino"]["compared_with"] == "the photo whose caption was the prompt"
    mixed = [*pictures, replace(pictures[0], photo=None)]
    outside = [replace(pictures[0], photo=2)]
    unknown = [replace(pictures[0], subject="cat")]
    for wrong in (mixed, outside, unknown):
        with pytest.raises(LikenessError):
            scorecard_of(score_images(wrong, {"fish": FISH}, encoders))


def test_memory_does_not_grow_with_the_pictures(encoders: Encoders) -> None:
    made = []

    class Lazy(list[Picture]):
        def __getitem__(self, key: slice) -> list[Picture]:  # type: ignore[override]
            if isinstance(key, int):
                return super().__getitem__(key)
            made.append(len(range(*key.indices(len(self)))))
            return super().__getitem__(key)

    pictures = Lazy([Picture(image=RED, prompt="red", subject="fish")] * 150)
    card = scorecard_of(score_images(pictures, {"fish": FISH}, encoders, batch=16))
    assert max(made) == 16 and encoders.clip.largest == 16  # type: ignore[attr-defined]
    assert len(card.rows) == 150 and len(card.thumbnails) == 60


def test_the_protocol_names_all_that_decides_the_numbers(encoders: Encoders) -> None:
    pictures = [Picture(image=RED, prompt="red", subject="fish")]
    card = scorecard_of(score_images(pictures, {"fish": FISH}, encoders))
    metric = card.protocol["metrics"]["clip_i"]
    assert set(metric) == {"label", "encoder", "weights_sha256", "preprocessing", "compared_with"}
    told = card.protocol["references"]["fish"]
    assert told["count"] == 2 and told["kind"] == "held out"
    turned = References(photos=FISH.photos[::-1], class_noun="fish")
    again = scorecard_of(score_images(pictures, {"fish": turned}, encoders))
    assert again.protocol["references"]["fish"]["sha256"] == told["sha256"]
    other = References(photos=[RED], class_noun="fish")
    fewer = scorecard_of(score_images(pictures, {"fish": other}, encoders))
    assert fewer.protocol["references"]["fish"]["sha256"] != told["sha256"]


def test_no_reference_is_no_number(encoders: Encoders, tmp_path: Path) -> None:
    pictures = [Picture(image=RED, prompt="red", subject="fish")]
    card = scorecard_of(score_images(pictures, {"fish": References(photos=[], class_noun="fish")}, encoders))
    assert math.isnan(card.means["dino"].value) and card.means["dino"].skipped == 1
    assert json.loads(card.to_json())["means"]["dino"]["value"] is None
    assert "Shade n/a" in card.summary()
    save_card(card, tmp_path, "card")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["card.csv", "card.json", "card.png"]


def test_files_are_equal_for_equal_cards_and_read_back(encoders: Encoders) -> None:
    pictures = [Picture(image=(RED + BLUE) / 2, prompt='red, "quoted"\nnext', subject="f\u00efsh", seed=3)]
    cards = [scorecard_of(score_images(pictures, {"f\u00efsh": FISH}, encoders, label="x")) for _ in range(2)]
    assert cards[0].to_json() == cards[1].to_json() and cards[0].to_csv() == cards[1].to_csv()
    assert draw_card(cards[0]).tobytes() == draw_card(cards[1]).tobytes()
    assert Scorecard.from_json(cards[0].to_json()) == cards[0]
    rows = list(csv.reader(io.StringIO(cards[0].to_csv())))
    assert rows[0][-3:] == ["Colour-T", "Colour-I", "Shade"] and rows[1][1] == 'red, "quoted"\nnext'
    for wrong in ("", "{}", "[1]", '{"label": 1, "rows": [{}], "protocol": 0}'):
        with pytest.raises(LikenessError, match="not a scorecard"):
            Scorecard.from_json(wrong)


def test_a_prompt_cannot_become_a_formula() -> None:
    row = Row(subject="+s", prompt="=cmd|' /C calc'!A0", text="@SUM(1)", scores={"clip_t": -0.5})
    cells = next(
        iter(list(csv.reader(io.StringIO(Scorecard(label="", rows=(row,), protocol={}).to_csv())))[1:])
    )
    assert [cell[0] for cell in cells[:3]] == ["'"] * 3
    assert float(cells[5]) == -0.5


def test_the_picture_copes_with_little_and_with_much() -> None:
    empty = Scorecard(label="", rows=(), protocol={})
    assert draw_card(empty).width == 1240
    row = Row(subject="a" * 300, prompt="x" * 900, text="", scores={"clip_t": math.nan, "dino": 4.0})
    assert draw_card(Scorecard(label="y" * 400, rows=(row,) * 3, protocol={})).height < 500
