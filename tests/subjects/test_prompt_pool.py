"""What an epoch's prompts are, and what no pool can be."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from likeness.core.errors import LikenessError
from likeness.subjects.prompt_pool import ACTIVITIES, PromptPool, check_words, pool_of

POOL = PromptPool(activities=("playing soccer", "cooking"), unseen=("dancing",))


def test_prompts_are_the_papers():
    texts = [p.text for p in POOL.all_prompts("sks cat", "cat")]
    assert texts == ["a sks cat playing soccer", "a sks cat cooking", "a cat playing soccer", "a cat cooking"]
    assert POOL.prompt("elephant", "cooking") == "an elephant cooking"
    told = PromptPool(activities=("jumping",), template="a photo of {}, {activity}")
    assert told.prompt("sks cat", "jumping") == "a photo of sks cat, jumping"


def test_half_and_half_draws_pairs():
    drawn = POOL.drawn(8, 0, seed=0)
    for without, named in zip(drawn[::2], drawn[1::2], strict=True):
        assert without[0] == named[0] and (without[1], named[1]) == (False, True)
    assert {activity for activity, _ in drawn[:4]} == set(POOL.activities)


@given(st.floats(0, 1), st.integers(0, 50), st.integers(1, 40), st.integers(0, 3))
def test_every_stretch_has_its_share(share, first, count, seed):
    pool = PromptPool(activities=("a", "b", "c"), identifier_share=share)
    drawn = pool.drawn(count, first, seed=seed)
    assert abs(sum(named for _, named in drawn) - share * count) <= 1 + 1e-6
    assert drawn == [pool.drawn(1, first + n, seed=seed)[0] for n in range(count)]
    known = {(p.activity, p.identified) for p in pool.all_prompts("sks cat", "cat")}
    assert set(drawn) <= known


def test_only_one_kind():
    for share in (0.0, 1.0):
        pool = PromptPool(activities=("a",), identifier_share=share)
        assert {p.identified for p in pool.all_prompts("sks cat", "cat")} == {bool(share)}


def test_the_lists_say_whose_phrases_they_are():
    for name, listed in ACTIVITIES.items():
        assert set(listed.seen.values()) | set(listed.unseen.values()) <= {"paper", "ours"}
        assert pool_of(name).activities == tuple(listed.seen)
    assert all(len(ACTIVITIES[name].seen) == 5 for name in ("pets", "toys", "vessels", "vehicles"))
    with pytest.raises(LikenessError, match="pets"):
        pool_of("none")


def test_toyboxs_list_is_of_its_world():
    from likeness.backbones.toybox import world

    words = {*world.ACTIONS.values(), *world.POSES.values()}
    assert {*ACTIVITIES["toybox"].seen, *ACTIVITIES["toybox"].unseen} <= words


@pytest.mark.parametrize(
    "wrong",
    [
        {"activities": ()},
        {"activities": ("  ", "")},
        {"activities": ("a",), "unseen": ("a ",)},
        {"activities": ("a",), "identifier_share": 1.5},
        {"activities": ("a",), "template": "a {}"},
    ],
)
def test_no_such_pool(wrong):
    with pytest.raises(LikenessError):
        PromptPool(**wrong)


def test_words_are_cleaned():
    pool = PromptPool(activities=(" playing   soccer", "playing soccer", ""))
    assert pool.activities == ("playing soccer",)


@pytest.mark.parametrize(("trigger", "noun"), [("cat", "cat"), ("", "cat"), ("sks cat", "")])
def test_an_identifier_that_is_none(trigger, noun):
    with pytest.raises(LikenessError):
        check_words(trigger, noun)
