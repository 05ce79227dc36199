import numpy as np
from likeness.subjects import load_folder
from PIL import Image


def test_photos_in_natural_order(tmp_path):
    for number in (10, 2, 1):
        Image.fromarray(np.full((8, 8, 3), number, np.uint8)).save(tmp_path / f"a{number}.png")
    subject = load_folder(tmp_path, class_noun="dog")
    assert [photo.path.name for photo in subject.photos] == ["a1.png", "a2.png", "a10.png"]
