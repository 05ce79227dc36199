"""DreamBench's protocol: which pictures are asked for, what judges them, and whose numbers a table shows."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from likeness.scoring.evaluation import Evaluation, tabulate
from likeness.scoring.figure5 import page, totals_csv
from likeness.scoring.prompted import Prompted, spread
from likeness.scoring.published import PUBLISHED, published_table
from likeness.subjects.dreambench import Benchmark, Item
from likeness.subjects.subject import Photo, Subject
from PIL import Image

from .test_heldout import MeanColour

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


class Length:
    """A reward: how long the prompt is."""

    id = label = "Length"
    weights_hash, differentiable = "0", False

    def __call__(self, images_B3HW: torch.Tensor, prompts: Any) -> torch.Tensor:
        return torch.tensor([float(len(prompt)) for prompt in prompts])


@pytest.fixture
def encoders() -> Any:
    return SimpleNamespace(clip=MeanColour("CLIP"), dino=MeanColour("DINO"))


def photo(folder: Path, name: str, colour: tuple[int, int, int]) -> Photo:
    path = folder / f"{name}.png"
    Image.new("RGB", (4, 4), colour).save(path)
    return Photo(path=path, sha256=name, width=4, height=4)


@pytest.fixture
def benchmark(tmp_path: Path) -> Benchmark:
    photos = (photo(tmp_path, "one", RED), photo(tmp_path, "two", GREEN))
    pot = Subject(name="pot", class_noun="pot", photos=photos)
    cup = Subject(name="cup", class_noun="cup", photos=photos[:1], held_out=photos[1:])
    prompts = ("a {} is red", "a {} is green", "a {} near red")
    items = (
        Item(subject=pot, prompts=prompts, practice="vessels"),
        Item(subject=cup, prompts=prompts[:2], practice="vessels"),
    )
    return Benchmark(name="pots", items=items, images_per_prompt=4)


def pictures(*colours: tuple[int, int, int]) -> torch.Tensor:
    return torch.stack([torch.tensor(c).float().div(255).view(3, 1, 1).expand(3, 4, 4) for c in colours])


def test_every_prompt_is_drawn_as_often_as_the_paper_draws_it(benchmark: Benchmark, encoders: Any) -> None:
    exam = Prompted(benchmark=benchmark, encoders=encoders)
    drawn = [(t.photo, t.number, t.draw) for t in exam.tasks(0)]
    assert drawn == [(None, prompt, n) for prompt in range(3) for n in range(4)]
    few = Prompted(benchmark=benchmark, encoders=encoders, images_per_prompt=1, prompts_per_subject=2)
    assert [t.caption for t in few.tasks(0)] == ["a {} is red", "a {} is green"]


def test_a_few_prompts_are_of_every_kind() -> None:
    """DreamBench lists 20 places before 5 colours: the first few would be places alone."""
    assert spread(25, 5) == [0, 5, 10, 15, 20] and spread(3, 5) == spread(3, 0) == [0, 1, 2]


def test_scores_by_hand(benchmark: Benchmark, encoders: Any) -> None:
    exam = Prompted(benchmark=benchmark, encoders=encoders, rewards={"image_reward": Length()})
    chunk = list(exam.tasks(0))[::4]
    scores = exam.judge(0).scores(chunk, pictures(RED, RED, BLUE))
    assert encoders.clip.read == ["a pot is red", "a pot is green", "a pot near red"]
    assert scores["clip_t"] == pytest.approx([1, 0, 0], abs=1e-6)
    assert scores["image_reward"] == [12, 14, 14]
    assert scores["dino"] == pytest.approx([0.5, 0.5, 0], abs=1e-6)  # the mean over a red and a green photo
    assert list(scores) == list(exam.columns)
    assert exam.columns["image_reward"] == "Length" and exam.columns["clip_t"] == "CLIP-T"


def test_held_out_photos_judge_where_there_are_some(benchmark: Benchmark, encoders: Any) -> None:
    exam = Prompted(benchmark=benchmark, encoders=encoders)
    scores = exam.judge(1).scores(list(exam.tasks(1))[:2], pictures(RED, GREEN))
    assert scores["dino"] == pytest.approx([0, 1], abs=1e-6)
    assert "held-out photos" in str(exam.record()["compared_with"])


def test_pick_score_is_shown_as_the_papers_show_it(benchmark: Benchmark, encoders: Any) -> None:
    exam = Prompted(benchmark=benchmark, encoders=encoders, rewards={"pick_score": Length()})
    scores = exam.judge(0).scores(list(exam.tasks(0))[:1], pictures(RED))
    assert scores["pick_score"] == pytest.approx([0.12])


def test_other_judges_or_prompts_are_another_evaluation(benchmark: Benchmark, encoders: Any) -> None:
    first = Prompted(benchmark=benchmark, encoders=encoders).record()
    assert first != Prompted(benchmark=benchmark, encoders=encoders, rewards={"r": Length()}).record()
    assert first != Prompted(benchmark=benchmark.reduced(most_subjects=1), encoders=encoders).record()


def shown(encoders: Any, benchmark: Benchmark, folder: Path) -> Evaluation:
    exam = Prompted(benchmark=benchmark, encoders=encoders, rewards={"image_reward": Length()})
    return tabulate(
        [], label="InstructBooth", dataset="pots", columns=exam.columns, folder=folder, protocol={}
    )


@pytest.mark.parametrize("paper", PUBLISHED)
def test_the_papers_numbers_stand_apart(
    benchmark: Benchmark, encoders: Any, tmp_path: Path, paper: str
) -> None:
    ours = [shown(encoders, benchmark, tmp_path)]
    with_theirs, without = page(ours, published=paper), page(ours)
    told = published_table(paper)
    assert told in with_theirs and "not measured here" in told
    assert "not measured here" not in without and "1.196" not in without
    head, _, theirs = with_theirs.partition(told)
    numbers = [f"{n['DINO']:.3f}" for n in PUBLISHED[paper].values()]
    assert all(number in told and number not in head + theirs for number in numbers)
    assert totals_csv(ours).splitlines()[0].startswith("method,clip_t,clip_t low,clip_t high,image_reward")


def test_the_published_numbers_are_the_papers() -> None:
    """InstructBooth's tables 1 and 2, a row of each."""
    wanted = {"CLIP-T": 0.323, "ImageReward": 1.196, "PickScore": 0.227, "DINO": 0.650}
    assert PUBLISHED["instructbooth"]["InstructBooth"] == wanted
    wanted = {"CLIP-T": 0.306, "ImageReward": 0.651, "PickScore": 0.217, "DINO": 0.661}
    assert PUBLISHED["dreambench"]["InstructBooth"] == wanted
