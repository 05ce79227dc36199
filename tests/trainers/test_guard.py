"""The guard's rule, on looks written by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from likeness.core.errors import LikenessError
from likeness.trainers.guard import IdentityGuard, Look, Warden, alarm, best_look, suspicious

GUARD = IdentityGuard(max_drop=0.1, patience=2, reward_rise=0.5, witness_fall=0.02)


def looks(*rows):
    """(reward, identity, witness) each; the start's rewards have a spread of 1."""
    return [
        Look(step=10 * n, reward=r, spread=1.0, unseen=None, without=0.0, identity=i, witness=w)
        for n, (r, i, w) in enumerate(rows)
    ]


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([(0, 0.8, 0.3)], ""),
        ([(0, 0.8, 0.3), (1, 0.78, 0.3), (2, 0.76, 0.31)], ""),
        ([(0, 0.8, 0.3), (1, 0.69, 0.3)], "identity fell"),
        ([(0, 0.8, 0.3), (1, 0.74, 0.3)], ""),  # once is chance
        ([(0, 0.8, 0.3), (1, 0.74, 0.3), (1, 0.74, 0.3)], "identity is falling"),
        ([(0, 0.8, 0.3), (1, 0.8, 0.27)], ""),
        ([(0, 0.8, 0.3), (1, 0.8, 0.27), (2, 0.8, 0.26)], "reward hacking"),
        ([(0, 0.8, 0.3), (0.4, 0.8, 0.2), (0.4, 0.8, 0.2)], ""),  # no reward was won by it
        ([(0, 0.8, 0.3), (1, 0.8, 0.4), (2, 0.8, 0.37), (2, 0.8, 0.37)], "reward hacking"),
    ],
)
def test_alarms(rows, words):
    said = alarm(looks(*rows), GUARD)
    assert said.startswith(words) and bool(said) == bool(words)


def test_the_export_is_the_best_that_is_safe():
    some = looks((0, 0.8, 0.3), (1, 0.75, 0.31), (3, 0.69, 0.31), (2, 0.72, 0.31), (9, 0.8, 0.2))
    assert best_look(some, GUARD).step == 30
    assert suspicious(some, GUARD)
    assert best_look(looks((0, 0.8, 0.3), (5, 0.5, 0.3), (6, 0.6, 0.3)), GUARD).step == 20
    assert best_look(some[:1], GUARD) is None


rows = st.tuples(st.floats(-3, 3), st.floats(0, 1), st.floats(0, 0.5))


@given(st.lists(rows, min_size=2, max_size=8))
def test_what_was_passed_over_never_becomes_the_best(some):
    """Checkpoints that are not the best may be removed at once."""
    every = looks(*some)
    chosen = [best_look(every[: n + 1], GUARD).step for n in range(1, len(every))]
    for before, after, now in zip(chosen, chosen[1:], every[2:], strict=False):
        assert after in (before, now.step)


@given(st.lists(rows, min_size=2, max_size=8))
def test_what_is_exported_kept_its_identity_if_any_did(some):
    every = looks(*some)
    kept = [look for n, look in enumerate(every[1:], 1) if not suspicious(every[: n + 1], GUARD)
            and every[0].identity - look.identity <= GUARD.max_drop]  # fmt: skip
    chosen = best_look(every, GUARD)
    assert not kept or (chosen in kept and chosen.reward == max(look.reward for look in kept))


def test_stopping_and_weighing():
    for act, stops, share in (("stop", True, 0.0), ("weigh", False, 1.0)):
        warden = Warden()
        warden.guard = IdentityGuard(max_drop=0.1, act=act)
        warden.looks = looks((0, 0.8, 0.3), (1, 0.6, 0.3))
        assert (warden.stops(), warden.pressure()) == (stops, share)
        warden.looks = looks((0, 0.8, 0.3), (1, 0.77, 0.3))
        assert not warden.stops() and warden.pressure() == pytest.approx(0.3 * (act == "weigh"))


@pytest.mark.parametrize("wrong", [{"every": 0}, {"max_drop": 0.0}, {"act": "pray"}])
def test_settings_that_cannot_be(wrong):
    with pytest.raises(LikenessError):
        IdentityGuard(**wrong)
