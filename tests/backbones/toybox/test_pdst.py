"""Toybox-PDST: what the generator promises."""

from __future__ import annotations

from pathlib import Path

from likeness.backbones.toybox import pdst, world


def test_twenty_subjects_half_living_and_either_half_with_shared_backgrounds() -> None:
    subjects = pdst.instances()
    living = [instance.noun in world.LIVING for instance in subjects]
    assert len(subjects) == 20 and sum(living) == 10 and sum(living[::2]) == 5
    assert len({(i.noun, i.look.key) for i in subjects}) == 20


def test_training_pictures_share_a_background_that_no_test_picture_has() -> None:
    for number, instance in enumerate(pdst.instances()[:4]):
        train, test = pdst.pictures(instance, shared=number % 2 == 0)
        scenes = {(p.scene, p.light, p.variant) for p in train}
        assert (len(train), len(test)) == (5, 10)
        if number % 2 == 0:
            assert len(scenes) == 1 and train[0].scene not in {p.scene for p in test}
        else:
            assert len(scenes) > 1
        assert all(world.caption_reserved(p) for p in test)


def test_every_test_picture_has_ten_true_captions_without_the_noun() -> None:
    instance = pdst.instances()[2]
    for picture in pdst.pictures(instance, shared=True)[1]:
        texts = pdst.wordings(picture)
        assert len(set(texts)) == 10
        assert all(text.count("{}") == 1 and instance.noun not in text.split() for text in texts)


def test_the_same_bytes_each_time(tmp_path: Path) -> None:
    roots = [pdst.write_dataset(tmp_path / name, subjects=1, test=2) for name in "ab"]
    files = [{p.relative_to(r): p.read_bytes() for p in r.rglob("*") if p.is_file()} for r in roots]
    assert files[0] == files[1] and len(files[0]) == 2 * 7 + 2
