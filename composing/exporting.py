"""A scene dataset in the layouts that other trainers read: kohya's folders, Hugging Face's image folder."""

from __future__ import annotations

import json
from pathlib import Path

from ..core.errors import LikenessError
from ..core.paths import slug, write_atomic
from .dataset import Scene, SceneDataset

LAYOUTS = ("kohya", "huggingface", "custom_diffusion")


def export_dataset(dataset: SceneDataset, folder: Path, layout: str, *, repeats: int = 10) -> Path:
    """Copy the scenes into ``folder``; the folder. Files that are there are kept, so that it can be repeated.

    kohya: ``10_scenes/000000.png`` with ``.txt``; huggingface: ``train/000000.png`` and ``metadata.jsonl``
    with boxes as COCO has them; custom_diffusion: images, ``.txt`` captions and ``concepts_list.json``.
    """
    if layout not in LAYOUTS:
        raise LikenessError(f"There is no layout {layout!r}", expected=", ".join(LAYOUTS))
    if folder.resolve() == dataset.folder.resolve():
        raise LikenessError("A dataset cannot be exported into itself", fix="Choose another folder")
    places = {
        "kohya": f"{repeats}_{slug(dataset.folder.name)}",
        "huggingface": "train",
        "custom_diffusion": "images",
    }
    target = folder / places[layout]
    rows = []
    for scene in dataset.scenes():
        name = Path(scene.image).name
        _copy(dataset.folder / scene.image, target / name)
        if layout == "huggingface":
            rows.append(json.dumps(_row(scene, name), sort_keys=True))
        else:
            write_atomic((target / name).with_suffix(".txt"), scene.caption + "\n")
    if rows:
        write_atomic(target / "metadata.jsonl", "\n".join(rows) + "\n")
    if layout == "custom_diffusion":
        write_atomic(folder / "concepts_list.json", json.dumps(_concepts(dataset), indent=1) + "\n")
    return folder


def _copy(source: Path, target: Path) -> None:
    if not target.exists():
        write_atomic(target, source.read_bytes())


def _row(scene: Scene, name: str) -> dict[str, object]:
    boxes = [
        [left, top, right - left, bottom - top] for left, top, right, bottom in (s.box for s in scene.shown)
    ]
    return {
        "file_name": name,
        "text": scene.caption,
        "objects": {"bbox": boxes, "categories": [one.subject for one in scene.shown]},
    }


def _concepts(dataset: SceneDataset) -> list[dict[str, str]]:
    return [
        {
            "instance_prompt": f"photo of a {member.token} {member.noun}",
            "class_prompt": member.noun,
            "instance_data_dir": "images",
            "class_data_dir": f"class/{slug(member.noun)}",
        }
        for member in dataset.members
    ]
