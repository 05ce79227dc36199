"""The papers' own numbers, to stand beside ours: always under a heading that says whose they are."""

from __future__ import annotations

from collections.abc import Mapping

from .page import Html, table

COLUMNS = ("CLIP-T", "ImageReward", "PickScore", "DINO")
Numbers = Mapping[str, Mapping[str, float]]

# InstructBooth (arXiv:2312.03011), table 1 on its own set and table 2 on DreamBench: Stable Diffusion 1.5,
# DINO ViT-S/16. Table 2 has two baselines twice: as Ruiz et al. have them, and run by its own authors.
PUBLISHED: Mapping[str, Numbers] = {
    "instructbooth": {
        "Custom Diffusion": {"CLIP-T": 0.323, "ImageReward": 1.088, "PickScore": 0.224, "DINO": 0.535},
        "DreamBooth": {"CLIP-T": 0.310, "ImageReward": 0.441, "PickScore": 0.220, "DINO": 0.699},
        "NeTI": {"CLIP-T": 0.311, "ImageReward": 0.480, "PickScore": 0.218, "DINO": 0.643},
        "Textual Inversion": {"CLIP-T": 0.271, "ImageReward": -1.15, "PickScore": 0.206, "DINO": 0.576},
        "InstructBooth": {"CLIP-T": 0.323, "ImageReward": 1.196, "PickScore": 0.227, "DINO": 0.650},
    },
    "dreambench": {
        "Textual Inversion, of Ruiz et al.": {"CLIP-T": 0.255, "DINO": 0.569},
        "DreamBooth, of Ruiz et al.": {"CLIP-T": 0.305, "DINO": 0.668},
        "Textual Inversion": {"CLIP-T": 0.257, "ImageReward": -1.337, "PickScore": 0.203, "DINO": 0.537},
        "DreamBooth": {"CLIP-T": 0.297, "ImageReward": 0.052, "PickScore": 0.214, "DINO": 0.648},
        "InstructBooth": {"CLIP-T": 0.306, "ImageReward": 0.651, "PickScore": 0.217, "DINO": 0.661},
    },
}
SOURCES: Mapping[str, str] = {
    "instructbooth": "InstructBooth's table 1: its own 8 subjects, 40 prompts, 400 pictures",
    "dreambench": "InstructBooth's table 2: DreamBench's 30 subjects, 25 prompts each, 3,000 pictures",
}


def published_table(name: str) -> Html:
    """One of ``PUBLISHED`` as a table of its own, whose caption says that nothing of it was measured here."""
    rows = [[method, *(_cell(numbers, c) for c in COLUMNS)] for method, numbers in PUBLISHED[name].items()]
    caption = f"As published, not measured here. {SOURCES[name]}, Stable Diffusion 1.5"
    return table(["method (published)", *COLUMNS], rows, caption=caption)


def _cell(numbers: Mapping[str, float], column: str) -> str:
    return f"{numbers[column]:.3f}" if column in numbers else "n/a"
