"""The run folder: its key, its journals, what counts as finished."""

import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from likeness.core.errors import LikenessError
from likeness.trainers import run as run_module
from likeness.trainers.dreambooth import DreamBoothConfig
from likeness.trainers.monitor import HeldOutMonitor
from likeness.trainers.prior import PriorPreservation
from likeness.trainers.run import Journal, Run, Settings

SETTINGS = Settings(
    method="dreambooth",
    subject="finn",
    subject_hash="s",
    base_hash="b",
    dtype="fp32",
    config=DreamBoothConfig(),
    seed=0,
)
CHANGES = {
    "method": "other",
    "subject": "anna",  # Textual Inversion's placeholder
    "subject_hash": "t",
    "base_hash": "c",
    "dtype": "bf16",
    "config": DreamBoothConfig(rank=8),
    "seed": 1,
    "monitor": HeldOutMonitor(),
    "prior": PriorPreservation(),
}


def test_every_setting_is_part_of_the_key():
    keys = {replace(SETTINGS, **{name: value}).key for name, value in CHANGES.items()}
    assert len(keys | {SETTINGS.key}) == len(CHANGES) + 1


def test_the_package_s_numerics_are_part_of_the_key(monkeypatch):
    before = SETTINGS.key
    monkeypatch.setattr(run_module, "NUMERICS_VERSION", run_module.NUMERICS_VERSION + 1)
    assert SETTINGS.key != before


def test_the_folder_is_named_and_described(tmp_path):
    run = Run(tmp_path, replace(SETTINGS, subject="a/b: c"))
    assert list(tmp_path.iterdir()) == []  # nothing before start
    run.start({"torch": "1"})
    assert run.folder.parent == tmp_path and run.folder.name.endswith(run.key[:12])
    described = json.loads((run.folder / "run.json").read_text())
    assert described["settings"]["fields"]["config"]["fields"]["rank"] == 4
    assert described["provenance"] == {"torch": "1"}


def test_going_on_with_other_versions_is_said_and_the_first_ones_stay(tmp_path, caplog):
    run = Run(tmp_path, SETTINGS)
    run.start({"torch": "1", "threads": "2"})
    run.start({"torch": "2", "threads": "2"})
    assert "other torch" in caplog.text
    assert json.loads((run.folder / "run.json").read_text())["provenance"]["torch"] == "1"


def test_a_damaged_run_json_is_named(tmp_path):
    run = Run(tmp_path, SETTINGS)
    run.start({})
    (run.folder / "run.json").write_text("{")
    with pytest.raises(LikenessError, match=r"run\.json"):
        run.start({})


@settings(deadline=None, max_examples=30)
@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=8), st.integers(0, 9))
def test_a_rewound_journal_is_one_that_never_went_further(tmp_path_factory, losses, step):
    folder = tmp_path_factory.mktemp("journal")
    long, short = Journal(folder / "long"), Journal(folder / "short")
    for number, loss in enumerate(losses, start=1):
        long.append({"step": number, "loss": loss})
        if number <= step:
            short.append({"step": number, "loss": loss})
    kept = long.rewind(step)
    assert [record["loss"] for record in kept] == losses[:step]
    assert not losses or long.path.read_text() == (short.path.read_text() if kept else "")


def test_a_torn_last_line_is_left_out(tmp_path):
    journal = Journal(tmp_path / "history.jsonl")
    journal.append({"step": 1})
    journal.path.write_text(journal.path.read_text() + '{"st')
    assert journal.read() == [{"step": 1}]


def test_a_journal_refuses_nan(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        Journal(tmp_path / "history.jsonl").append({"step": 1, "loss": float("nan")})


def test_a_changed_concept_is_exported_anew(method_case, base, subject, tmp_path, finish):
    done = finish(method_case.events(base, subject, tmp_path, steps=2))
    good = done.concept.path.read_bytes()
    done.concept.path.write_bytes(good[:-1])
    again = finish(method_case.events(base, subject, tmp_path, steps=2))
    assert not again.reused and again.concept.path.read_bytes() == good
    done.concept.path.unlink()
    assert finish(method_case.events(base, subject, tmp_path, steps=2)).concept.sha256 == done.concept.sha256
