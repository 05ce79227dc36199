"""The protocol of DreamBench and InstructBooth: prompts of their own, against all photos of the subject.

    CLIP-T       picture and prompt, with the class noun in the subject's place
    ImageReward  the same two, by a model of people's preferences (for Toybox its own one)
    PickScore    the same two, by a model of users' choices
    CLIP-I       picture and photos, the mean cosine in CLIP's space
    DINO         the same in DINO's space

Ruiz et al. 2022 (arXiv:2208.12242, section 4.2) and InstructBooth (arXiv:2312.03011, section 5.1, tables 1
and 2). Their photos are the training photos, which flatters a method that has learned them by heart; where a
subject has held-out photos, those judge.
"""
# Shapes: B pictures of a batch, M photos, D feature width, H W pixels.

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ..subjects.dataset import SLOT
from ..subjects.dreambench import Benchmark, Item
from ..subjects.subject import Subject
from .encoders import Encoders, to_tensor
from .evaluation import Task
from .metrics import clip_i, clip_t, dino
from .rewards import Reward, checked_scores
from .thumbnails import picture_of

# Tables show PickScore's plain cosine, about 0.2: the reward is a hundred times that (its logit scale).
SCALES: Mapping[str, float] = {"pick_score": 0.01}


@dataclass(frozen=True, kw_only=True)
class Prompted:
    """A benchmark of prompts and its judges; satisfies ``evaluation.Exam``. ``rewards`` by column."""

    benchmark: Benchmark
    encoders: Encoders
    rewards: Mapping[str, Reward] = field(default_factory=dict)
    images_per_prompt: int = 0  # 0: as many as the benchmark's paper draws
    prompts_per_subject: int = 0  # 0: all; else so many, spread over the list

    @property
    def name(self) -> str:
        return self.benchmark.name

    @property
    def columns(self) -> Mapping[str, str]:
        clip = self.encoders.clip.label
        preferences = {column: reward.label for column, reward in self.rewards.items()}
        return {
            "clip_t": f"{clip}-T", **preferences, "clip_i": f"{clip}-I", "dino": self.encoders.dino.label
        }  # fmt: skip

    @property
    def subjects(self) -> Sequence[Subject]:
        return [item.subject for item in self.benchmark.items]

    def tasks(self, number: int) -> Iterator[Task]:
        item = self.benchmark.items[number]
        for prompt in spread(len(item.prompts), self.prompts_per_subject):
            for draw in range(self.images_per_prompt or self.benchmark.images_per_prompt):
                yield Task(item.subject.name, None, prompt, draw, item.prompts[prompt])

    def judge(self, number: int) -> Judge:
        return Judge(self.benchmark.items[number], self.encoders, self.rewards)

    def record(self) -> Mapping[str, Any]:
        judges = [[e.id, e.weights_hash, e.preprocessing] for e in (self.encoders.clip, self.encoders.dino)]
        held_out = any(subject.held_out for subject in self.subjects)
        photos = "held-out photos" if held_out else "photos, which it was learned from"
        return {
            "dataset": self.benchmark.content_hash,
            "encoders": judges + [[column, r.id, r.weights_hash] for column, r in self.rewards.items()],
            "compared_with": f"all of the subject's {photos}; plain mean over all pictures",
        }


def spread(count: int, most: int) -> list[int]:
    """``most`` of ``count`` numbers at equal distances, so that every kind of prompt is met; 0: all."""
    if not most or most >= count:
        return list(range(count))
    return [n * count // most for n in range(most)]


class Judge:
    """The photos of one subject, encoded once, beside the models that read prompts."""

    def __init__(self, item: Item, encoders: Encoders, rewards: Mapping[str, Reward]) -> None:
        self.subject, self.encoders, self.rewards = item.subject, encoders, rewards
        photos = [to_tensor(picture_of(p)) for p in item.subject.held_out or item.subject.photos]
        self._clip_MD, self._dino_MD = encoders.clip.encode(photos), encoders.dino.encode(photos)

    def scores(self, chunk: Sequence[Task], images_B3HW: Tensor) -> Mapping[str, Sequence[float]]:
        texts = [task.caption.replace(SLOT, self.subject.class_noun) for task in chunk]
        clip_BD, dino_BD = self.encoders.clip.encode(images_B3HW), self.encoders.dino.encode(images_B3HW)
        columns = {"clip_t": clip_t(clip_BD, self.encoders.clip.encode_text(texts))}
        for column, reward in self.rewards.items():
            columns[column] = SCALES.get(column, 1.0) * checked_scores(reward, images_B3HW, texts)
        columns |= {"clip_i": clip_i(clip_BD, self._clip_MD), "dino": dino(dino_BD, self._dino_MD)}
        return {name: scores_B.tolist() for name, scores_B in columns.items()}
