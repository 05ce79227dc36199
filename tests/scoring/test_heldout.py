"""The held-out protocol: each picture against its caption's own photo, in a file that survives a kill."""

from __future__ import annotations

import math
import tracemalloc
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from likeness.core.errors import LikenessError
from likeness.scoring.evaluation import Evaluation, Row, RowFile, tabulate
from likeness.scoring.figure5 import bubbles, page, same_protocol, totals_csv
from likeness.scoring.heldout import COLUMNS, HeldOut, Judge, column_names, tasks
from likeness.subjects.dataset import Dataset, Entry
from likeness.subjects.subject import Photo, Subject
from PIL import Image

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


class MeanColour:
    """A picture's feature is its mean colour; a text's is the colour it names."""

    id, weights_hash, preprocessing = "mean colour", "0", "none"

    def __init__(self, label: str) -> None:
        self.label = label

    def encode(self, images: Any) -> torch.Tensor:
        means = torch.stack([image.mean(dim=(1, 2)) for image in images])
        return means / means.norm(dim=1, keepdim=True)

    def encode_text(self, texts: Any) -> torch.Tensor:
        self.read = list(texts)
        return torch.stack([torch.eye(3)[["red", "green", "blue"].index(text.split()[-1])] for text in texts])


@pytest.fixture
def encoders() -> Any:
    return SimpleNamespace(clip=MeanColour("CLIP"), dino=MeanColour("DINO"))


def photo(folder: Path, name: str, colour: tuple[int, int, int]) -> Photo:
    path = folder / f"{name}.png"
    Image.new("RGB", (4, 4), colour).save(path)
    return Photo(path=path, sha256=name, width=4, height=4)


@pytest.fixture
def entry(tmp_path: Path) -> Entry:
    subject = Subject(
        name="pot",
        class_noun="pot",
        photos=(photo(tmp_path, "train", BLUE),),
        held_out=(photo(tmp_path, "one", RED), photo(tmp_path, "two", GREEN)),
    )
    return Entry(subject=subject, captions=(("A {} is red", "A {} near red"), ("A {} is green",)))


def test_every_caption_is_drawn_with_every_seed_in_a_fixed_order(entry: Entry) -> None:
    drawn = [(t.photo, t.number, t.draw) for t in tasks(entry, seeds_per_caption=2)]
    assert drawn == [(0, 0, 0), (0, 0, 1), (0, 1, 0), (0, 1, 1), (1, 0, 0), (1, 0, 1)]
    assert len(list(tasks(entry, seeds_per_caption=5, captions_per_photo=1))) == 10


def test_a_picture_is_compared_with_the_photo_of_its_caption_and_no_other(
    entry: Entry, encoders: Any
) -> None:
    chunk = list(tasks(entry, seeds_per_caption=1))
    red, half, blue = (torch.zeros(3, 4, 4) for _ in range(3))
    red[0], half[0], half[1], blue[2] = 1, 1, 1, 1
    scores = Judge(entry, encoders).scores(chunk, torch.stack([red, half, blue]))
    assert encoders.clip.read == ["A pot is red", "A pot near red", "A pot is green"]
    got = list(zip(*(scores[column] for column in COLUMNS), strict=True))
    diagonal = 1 / math.sqrt(2)
    wanted = [(1, 1, 1, 0), (diagonal, diagonal, diagonal, 0), (0, 0, 0, 1)]
    assert torch.allclose(torch.tensor(got), torch.tensor(wanted).float(), atol=1e-6)


def row(subject: str = "pot", number: int = 0, value: float = 0.5) -> Row:
    return Row(subject, 0, number, 0, dict.fromkeys(COLUMNS, value))


def test_rows_come_back_and_a_torn_line_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    RowFile(path).append([row(number=0), row(number=1, value=math.nan)])
    with path.open("ab") as file:
        file.write(b'{"subject": "po')
    again = RowFile(path)
    found = list(again)
    assert again.count == 2 and found[0] == row() and math.isnan(found[1].scores["dino"])
    again.append([row(number=2)])
    again.keep(1)
    assert [r.number for r in RowFile(path)] == [0]


def test_a_line_that_is_no_score_is_named(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"subject": 3}\n')
    with pytest.raises(LikenessError, match="no score"):
        list(RowFile(tmp_path / "rows.jsonl"))


def table(rows: Iterable[Row], folder: Path, encoders: Any, label: str = "TI", **protocol: Any) -> Evaluation:
    columns = column_names(encoders)
    return tabulate(rows, label=label, dataset="data", columns=columns, folder=folder, protocol=protocol)


def test_the_total_is_the_plain_mean_over_pictures(tmp_path: Path, encoders: Any) -> None:
    """Not the mean of the subjects' means, which would be 0.6."""
    found = table([row("a", value=0.2), row("a", value=0.4), row("b", value=0.9)], tmp_path, encoders)
    assert all(found.total[c] == pytest.approx(0.5) for c in COLUMNS)
    assert found.subjects["a"]["dino"] == pytest.approx(0.3) and found.subjects["a"]["pictures"] == 2
    low, high = found.intervals["dino"]
    assert low == pytest.approx(0.3) and high == pytest.approx(0.9)
    csv, summary = found.save()
    assert csv.read_text().splitlines()[-1].startswith("all pictures,3,0.500000")
    assert '"dataset": "data"' in summary.read_text()


def test_scores_that_are_no_number_are_left_out(tmp_path: Path, encoders: Any) -> None:
    found = table([row(value=0.2), row(value=math.nan)], tmp_path, encoders)
    assert found.total["dino"] == pytest.approx(0.2)
    assert math.isnan(table([], tmp_path, encoders).total["dino"])


def test_the_plot_has_a_bubble_per_method_and_an_arrow_to_the_plus(tmp_path: Path, encoders: Any) -> None:
    ti, plus, neti = (
        table([row(value=v)], tmp_path, encoders, label)
        for label, v in (("TI", 0.3), ("TI+", 0.5), ("NeTI", 0.4))
    )
    drawing = bubbles([ti, plus, neti])
    assert drawing.count("<circle") == 3 and drawing.count('fill="none" stroke="var(--series-4') == 1
    assert 'r="6"' in drawing and 'r="20"' in drawing
    assert "<script" not in page([ti, plus]) and "TI+" in page([ti, plus])
    assert totals_csv([ti]).splitlines()[1].startswith("TI,0.300000")
    escaped = page([table([row()], tmp_path, encoders, "<b>")])
    assert "<b>" not in escaped


def test_only_like_stands_beside_like(tmp_path: Path, encoders: Any) -> None:
    one, two = (table([row()], tmp_path, encoders, dataset=name) for name in "ab")
    assert same_protocol([one, one]) and not same_protocol([one, two])


def test_a_photo_without_captions_is_named(entry: Entry, encoders: Any) -> None:
    bare = Entry(subject=entry.subject, captions=(("A {}",), ()))
    with pytest.raises(LikenessError, match=r"two\.png"):
        HeldOut(dataset=Dataset(name="data", entries=(bare,)), encoders=encoders, seeds_per_caption=1)


def test_memory_does_not_grow_with_the_pictures(tmp_path: Path, encoders: Any) -> None:
    """Ten times the rows, through the file and into the table, at the same peak."""
    file = RowFile(tmp_path / "rows.jsonl")
    block = [row(f"subject {n % 30}", number=n, value=n % 7 / 7) for n in range(1000)]
    peaks = []
    for blocks in (1, 9):
        for _ in range(blocks):
            file.append(block)
        tracemalloc.start()
        found = table(file, tmp_path, encoders)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert found.pictures == file.count
    assert file.count == 10_000 and peaks[1] < 1.05 * peaks[0]
