"""Tables that can be stopped anywhere, and say whose numbers they show."""

import math

import pytest
import torch
from likeness.core.errors import LikenessError
from likeness.scoring.benchtable import PAPERS, ScoreLog, Task, fill, markdown, table

TASKS = [
    Task(method=method, subject=subject, prompt=prompt, number=number)
    for method in ("DreamBooth", "InstructBooth")
    for subject in ("cat", "dog")
    for prompt in ("a", "b")
    for number in (0, 1)
]


class Study:
    def __init__(self):
        self.batches = []

    def draw(self, tasks):
        self.batches.append([task.key for task in tasks])
        return torch.zeros(len(tasks), 3, 2, 2)

    def score(self, tasks, images):
        return {"CLIP-T": [len(task.method) / 10 + task.number for task in tasks]}

    def run(self, log, stop_after=99):
        for count, _ in enumerate(fill(log, TASKS, self.draw, self.score, batch_size=3), 1):
            if count == stop_after:
                return self
        return self


def test_a_stopped_study_goes_on(tmp_path):
    log, whole = ScoreLog(tmp_path / "parts.jsonl"), ScoreLog(tmp_path / "whole.jsonl")
    first = Study().run(log, stop_after=2)
    with log.path.open("a") as file:
        file.write('{"method": "DreamBooth", "subj')  # a crash in the middle of a line
    second = Study().run(log)
    drawn = [key for study in (first, second) for batch in study.batches for key in batch]
    assert sorted(drawn) == sorted(task.key for task in TASKS)  # nothing lost, nothing twice
    assert [len({key[:2] for key in batch}) for batch in second.batches] == [1] * len(second.batches)
    Study().run(whole)
    assert table(log) == table(whole) or markdown(table(log)) == markdown(table(whole))
    assert not Study().run(log).batches


def test_means_and_papers_are_told_apart(tmp_path):
    log = ScoreLog(tmp_path / "log.jsonl")
    Study().run(log)
    means = table(log, ["CLIP-T"])
    assert means["DreamBooth"]["CLIP-T"].value == pytest.approx(1.5)
    assert means["InstructBooth"]["CLIP-T"].value == pytest.approx(1.8)
    text = markdown(means, paper="instructbooth")
    assert "| InstructBooth | 1.800" in text and text.count("not measured here") == 5
    assert "not measured" not in markdown(means) and len(PAPERS["dreambench"]) == 3


def test_scores_that_are_no_numbers_are_left_out(tmp_path):
    log = ScoreLog(tmp_path / "log.jsonl")
    log.append(TASKS[0], {"CLIP-T": math.nan})
    log.append(TASKS[1], {"CLIP-T": 0.5})
    mean = table(log, ["CLIP-T"])["DreamBooth"]["CLIP-T"]
    assert (mean.value, mean.count, mean.skipped) == (0.5, 1, 1)


def test_another_count_is_refused(tmp_path):
    log = ScoreLog(tmp_path / "log.jsonl")
    with pytest.raises(LikenessError, match="1 scores for 3"):
        list(fill(log, TASKS, Study().draw, lambda tasks, images: {"DINO": [0.0]}, batch_size=3))
    assert not log.path.exists()
