"""The questions of InstructBooth's human evaluation (section 5.3 and appendix E), their order and verdicts.

Three parts: is it the subject (yes or no), does it show what the text says (yes or no), which of two
pictures is better (blind). A rater may pass what is hard to determine; on yes or no a pass counts as bad.
Everything here is a pure function of the study and its seed, so that an order can be checked years later.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from .definition import Study

Kind = Literal["subject", "text", "preference"]
Verdict = Literal["good", "bad", "first", "second", "tie"]
PASS = "pass"


@dataclass(frozen=True, kw_only=True)
class Part:
    """One of the three parts, in the words of the paper's appendix E."""

    title: str
    question: str
    guidance: str
    answers: tuple[str, ...]


PARTS: dict[Kind, Part] = {
    "subject": Part(
        title="Is it the same subject?",
        question="Do the objects in the image closely resemble those in the given image?",
        guidance="Look at the subject itself: shape, colours, markings. Ignore its pose, and ignore the "
        "surroundings.",
        answers=("yes", "no", PASS),
    ),
    "text": Part(
        title="Does it show the text?",
        question="Is the alignment of the image with the text correct?",
        guidance="Look at what the text says: is all of it in the image? Ignore how beautiful the image is.",
        answers=("yes", "no", PASS),
    ),
    "preference": Part(
        title="Which one is better?",
        question="When considered comprehensively from three different perspectives, please indicate which "
        "of the two images you prefer.",
        guidance="In this order: first, does it show the text; second, does the subject resemble the given "
        "image; third, does it look natural.",
        answers=("first", "second", PASS),
    ),
}


@dataclass(frozen=True, kw_only=True)
class Question:
    """What one ballot answers. ``methods`` is one, or for a preference the compared one and its rival."""

    kind: Kind
    subject: str
    prompt: str
    sample: int  # index into the study's samples
    methods: tuple[str, ...]
    id: str


def questions(study: Study) -> tuple[Question, ...]:
    """All of them: per sample and method the two yes-or-no questions, and the target against each other."""
    target = study.definition.target
    made = []
    for number, sample in enumerate(study.samples):
        for kind in ("subject", "text"):
            made += [_question(study, kind, number, (method,)) for method in sample.pictures]
        rivals = [method for method in sample.pictures if method != target]
        made += [_question(study, "preference", number, (target, rival)) for rival in rivals]
    return tuple(made)


def _question(study: Study, kind: str, number: int, methods: tuple[str, ...]) -> Question:
    sample = study.samples[number]
    pictures = [sample.pictures[method].sha256 for method in methods]
    told = [kind, sample.subject, sample.prompt, number, methods, pictures]
    return Question(
        kind=kind,  # type: ignore[arg-type]
        subject=sample.subject,
        prompt=sample.prompt,
        sample=number,
        methods=methods,
        id=_digest(*map(str, told))[:20],
    )


def fingerprint(study: Study) -> str:
    """Of all that a rater's questions follow from; ballots of another fingerprint are not of this study."""
    asked = [question.id for question in questions(study)]
    photos = sorted((name, [p.sha256 for p in kept]) for name, kept in study.photos.items())
    definition = study.definition
    told = [asked, photos, definition.seed, definition.raters, definition.questions_per_rater]
    return _digest(json.dumps(told))


# --- who is asked what, in which order ------------------------------------------------------------


def seats(study: Study, num_questions: int) -> int:
    """How many raters the study takes so that each question is answered by ``raters`` of them."""
    return study.definition.raters * _num_blocks(study, num_questions)


def asked(study: Study, seat: int, everything: Sequence[Question]) -> list[Question]:
    """A seat's questions in its order: part by part, shuffled within each by the stored seed and the seat.

    The order is by hash of (seed, seat, question): equal in every Python and easy to check with any tool.
    With ``questions_per_rater`` the questions are shuffled by the seed, cut into blocks, and seat n has
    block n modulo their number.
    """
    seed, kinds = study.definition.seed, list(PARTS)
    blocks = _num_blocks(study, len(everything))
    dealt = sorted(everything, key=lambda q: _digest(seed, "deal", q.id))
    mine = [q for place, q in enumerate(dealt) if place % blocks == seat % blocks]
    return sorted(mine, key=lambda q: (kinds.index(q.kind), _digest(seed, seat, q.id)))


def _num_blocks(study: Study, num_questions: int) -> int:
    size = study.definition.questions_per_rater or num_questions
    return max(1, -(-num_questions // size))


def first_is_left(study: Study, seat: int, question: Question) -> bool:
    """On which side a preference shows its first method: a fair coin of seed, seat and question."""
    return int(_digest(study.definition.seed, "side", seat, question.id)[:8], 16) % 2 == 0


def _digest(*parts: object) -> str:
    return hashlib.sha256(json.dumps([str(part) for part in parts]).encode()).hexdigest()


# --- verdicts -------------------------------------------------------------------------------------


def counted(kind: Kind, answer: str) -> str:
    """An answer as the protocol counts it: on yes or no, a pass is bad (footnote 1 of section 5.3)."""
    return answer if kind == "preference" else {"yes": "good"}.get(answer, "bad")


def majority(answers: Iterable[str]) -> Verdict:
    """Good when more than half of *all* ballots say yes: 4 of 7, whatever the rest said or passed."""
    told = list(answers)
    return "good" if sum(answer == "yes" for answer in told) >= len(told) // 2 + 1 else "bad"


def preferred(answers: Iterable[str]) -> Verdict:
    """The one with more votes; who passes abstains, and equal votes are a tie, reported as such."""
    votes = Counter(answers)
    if votes["first"] == votes["second"]:
        return "tie"
    return "first" if votes["first"] > votes["second"] else "second"
