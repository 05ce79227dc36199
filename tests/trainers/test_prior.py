"""Class images: drawn once, topped up, mended, and the same whatever was there before."""

import pytest
from likeness.backbones import open_backbone
from likeness.core.errors import LikenessError
from likeness.trainers.events import Phase
from likeness.trainers.prior import PriorPreservation, class_images, load_class_images


def drawn(base, root, **changes):
    """(paths, phases)"""
    prior = PriorPreservation(**{"num_images": 3, "steps": 2, "batch_size": 2, **changes})
    events = class_images(prior, open_backbone(base), "fish", runs_root=root, dtype="fp32")
    phases = []
    while True:
        try:
            phases.append(next(events))
        except StopIteration as end:
            return end.value, phases


def test_they_are_drawn_once_with_progress(base, tmp_path):
    paths, phases = drawn(base, tmp_path)
    assert [path.name for path in paths] == ["00000.png", "00001.png", "00002.png"]
    assert all(isinstance(p, Phase) and p.name == "class images" and p.total == 4 for p in phases)
    assert [p.done for p in phases] == [0, 1, 2, 2, 3, 4]
    again, silence = drawn(base, tmp_path)
    assert again == paths and silence == []


def test_a_set_is_topped_up_and_equals_one_drawn_at_once(base, tmp_path):
    few, _ = drawn(base, tmp_path / "a", num_images=2)
    stamps = [path.stat().st_mtime_ns for path in few]
    more, _ = drawn(base, tmp_path / "a", num_images=5)
    assert more[:2] == few and [path.stat().st_mtime_ns for path in few] == stamps
    whole, _ = drawn(base, tmp_path / "b", num_images=5)
    assert [p.read_bytes() for p in more] == [p.read_bytes() for p in whole]


def test_a_damaged_picture_is_drawn_again(base, tmp_path, caplog):
    paths, _ = drawn(base, tmp_path)
    good = paths[1].read_bytes()
    paths[1].write_bytes(good[: len(good) // 2])
    drawn(base, tmp_path)
    assert paths[1].read_bytes() == good and "damaged" in caplog.text


@pytest.mark.parametrize(
    "change", [{"prompt": "a dog"}, {"seed": 1}, {"steps": 3}, {"guidance": 2.0}, {"batch_size": 3}]
)
def test_what_decides_a_picture_decides_its_folder(base, tmp_path, change):
    assert drawn(base, tmp_path)[0][0].parent != drawn(base, tmp_path, **change)[0][0].parent


def test_loaded_pictures_are_in_the_encoder_s_range(base, tmp_path):
    numbers, pictures = zip(*load_class_images(drawn(base, tmp_path)[0], [(8, 8)], 8), strict=True)
    assert numbers == (0, 1, 2) and pictures[0].shape == (3, 64, 64)
    assert all(-1 <= p.min() < 0 < p.max() <= 1 for p in pictures)


def test_prompts_and_impossible_settings():
    assert PriorPreservation().class_prompt("owl") == "a photo of an owl"
    assert PriorPreservation(prompt="an owl").class_prompt("owl") == "an owl"
    with pytest.raises(LikenessError, match="0 images"):
        PriorPreservation(num_images=0)
