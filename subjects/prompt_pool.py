"""Prompts for alignment: an activity, with and without the subject's identifier (InstructBooth, section 4.2).

    "a [identifier] [class noun] [activity]"  and  "a [class noun] [activity]"

Both kinds train together: an overfitted model rarely draws a good picture of its subject doing something, and
learns it sooner from pictures of any such thing (Figure 8).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import floor
from typing import Literal

import torch

from ..core.errors import LikenessError
from ..core.randomness import generator

Source = Literal["paper", "ours"]


@dataclass(frozen=True, kw_only=True)
class ActivityList:
    """Phrases for a kind of subject. ``unseen`` ones are for scores and never train.

    ``source`` says of every phrase whether the paper's text names it or it is our own fill-in (the rest of
    the paper's list is in a picture, Figure 9).
    """

    seen: Mapping[str, Source]
    unseen: Mapping[str, Source]


ACTIVITIES: Mapping[str, ActivityList] = {
    # The paper's four pairs of subjects; each pair shares five phrases (appendix A).
    "pets": ActivityList(
        seen={
            "playing soccer": "paper",
            "riding a bike": "paper",
            "cooking a gourmet meal": "paper",
            "playing tennis": "paper",
            "reading a book": "ours",
        },
        unseen={
            "playing a guitar": "paper",
            "wearing headphones": "paper",
            "doing taekwondo": "paper",
            "painting a picture": "ours",
        },
    ),
    "toys": ActivityList(
        seen={
            "playing soccer": "paper",
            "riding a bike": "paper",
            "cooking a gourmet meal": "paper",
            "playing tennis": "paper",
            "floating on the water": "paper",
        },
        unseen={"doing taekwondo": "paper", "playing a guitar": "paper", "surfing on a wave": "ours"},
    ),
    "vessels": ActivityList(
        seen={
            "with the pens in it": "paper",
            "with popcorn in it": "paper",
            "floating on the water": "paper",
            "with flowers in it": "ours",
            "with steam coming out of it": "ours",
        },
        unseen={"with candies in it": "ours", "being washed in a sink": "ours"},
    ),
    "vehicles": ActivityList(
        seen={
            "driving through a vibrant city at night": "paper",
            "floating on the water": "paper",
            "driving on a snowy road": "ours",
            "parked under a tree": "ours",
            "jumping over a ramp": "ours",
        },
        unseen={"cornering on the cliffside road": "paper", "driving through a desert": "ours"},
    ),
    # What Toybox's world can draw; another part of its actions and poses is kept unseen.
    "toybox": ActivityList(
        seen={
            "playing with a ball": "ours",
            "holding a flag": "ours",
            "riding a skateboard": "ours",
            "jumping": "ours",
        },
        unseen={"flying a kite": "ours", "reading a book": "ours", "upside down": "ours"},
    ),
    # Appendix G: the two prompts that train for DreamBench, none of whose own prompts are trained on.
    "dreambench objects": ActivityList(
        seen={"with a church in the background": "paper", "on top of blue sofa": "paper"}, unseen={}
    ),
    "dreambench live": ActivityList(
        seen={"in a nurse outfit": "paper", "on top of blue sofa": "paper"}, unseen={}
    ),
}


@dataclass(frozen=True, kw_only=True)
class PoolPrompt:
    """One prompt as the model reads it. ``identified``: it names the subject."""

    text: str
    activity: str
    identified: bool


@dataclass(frozen=True, kw_only=True)
class PromptPool:
    """Activities to train on and to keep unseen, and how often a prompt names the subject."""

    activities: tuple[str, ...]
    unseen: tuple[str, ...] = ()
    identifier_share: float = 0.5  # of the prompts. The paper uses both kinds and names no share
    template: str = "a {} {activity}"  # section 4.2; {} is the subject, or its class

    def __post_init__(self) -> None:
        cleaned = {name: _cleaned(getattr(self, name)) for name in ("activities", "unseen")}
        for name, phrases in cleaned.items():
            object.__setattr__(self, name, phrases)
        if not self.activities:
            raise LikenessError(
                "The prompt pool has no activity",
                expected='at least one phrase, such as "playing soccer"',
                fix="Write one activity per line, or choose a list",
            )
        leaked = sorted(set(self.activities) & set(self.unseen))
        if leaked:
            raise LikenessError(
                f"{leaked[0]!r} is both trained on and kept unseen", fix="Remove it from one of the lists"
            )
        if not 0 <= self.identifier_share <= 1:
            raise LikenessError(
                f"The identifier share is {self.identifier_share}", expected="a share between 0 and 1"
            )
        if "{}" not in self.template or "{activity}" not in self.template:
            raise LikenessError(
                f"The template {self.template!r} has no place for the subject or the activity",
                expected="{} and {activity} in it",
            )

    def prompt(self, subject_words: str, activity: str) -> str:
        """The template filled in, with "an" in front of a vowel."""
        text = self.template.replace("{activity}", activity).replace("{}", subject_words)
        article = f"a {subject_words}"
        if subject_words[:1].lower() in tuple("aeiou") and text.startswith(article):
            text = f"an {subject_words}" + text.removeprefix(article)
        return text

    def all_prompts(self, trigger: str, class_noun: str) -> list[PoolPrompt]:
        """Every prompt that training may draw, those with the identifier first, in the activities' order."""
        kinds = [(trigger, True)] * (self.identifier_share > 0) + [(class_noun, False)] * (
            self.identifier_share < 1
        )
        return [
            PoolPrompt(text=self.prompt(words, activity), activity=activity, identified=identified)
            for words, identified in kinds
            for activity in self.activities
        ]

    def drawn(self, count: int, first: int, *, seed: int) -> list[tuple[str, bool]]:
        """(activity, identified) of ``count`` prompts of an endless walk, from number ``first`` on.

        Every stretch of the walk has the identifier's share, to one prompt. Each kind walks through all
        activities, shuffled anew in every round and alike for both, so that with a share of one half every
        activity is drawn as a pair.
        """
        walk = []
        for number in range(first, first + count):
            named = floor((number + 1) * self.identifier_share + 1e-9)
            before = floor(number * self.identifier_share + 1e-9)
            identified = named > before
            own = before if identified else number - before
            walk.append((self._activity(own, seed), identified))
        return walk

    def _activity(self, number: int, seed: int) -> str:
        turn, place = divmod(number, len(self.activities))
        order = torch.randperm(len(self.activities), generator=generator(seed, "activity", turn))
        return self.activities[int(order[place])]


def _cleaned(phrases: Sequence[str]) -> tuple[str, ...]:
    """Without blanks, empty lines and repetitions, in their order."""
    return tuple(dict.fromkeys(" ".join(phrase.split()) for phrase in phrases if phrase.strip()))


def pool_of(name: str, *, identifier_share: float = 0.5) -> PromptPool:
    """A list of ``ACTIVITIES`` as a pool."""
    if name not in ACTIVITIES:
        raise LikenessError(f"There is no activity list {name!r}", expected=", ".join(ACTIVITIES))
    listed = ACTIVITIES[name]
    return PromptPool(
        activities=tuple(listed.seen), unseen=tuple(listed.unseen), identifier_share=identifier_share
    )


def check_words(trigger: str, class_noun: str) -> None:
    """LikenessError unless a trigger names the subject beside its class."""
    if not class_noun.strip():
        raise LikenessError(
            "The class noun is not known, so there is no prompt without the identifier",
            fix="Fill in the class noun of the subject",
        )
    if not trigger.strip() or trigger.strip().lower() == class_noun.strip().lower():
        raise LikenessError(
            f"The prompts have no identifier: the subject is called {trigger!r}, as its class",
            expected='a word of its own, such as "sks dog"',
            fix="Apply the concept of a trainer, such as Train DreamBooth",
        )
