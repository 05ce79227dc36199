"""Captions of Toybox pictures by rule: the built-in judge reads the facts, the world's words tell them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from ...backbones.toybox.world import Picture


class ToyboxCaptioner:
    id = "toybox-judge"

    def __init__(self) -> None:
        from ...backbones.toybox import models

        self._judge = models.load_judge()

    def write(self, image: Image.Image, noun: str, count: int, attempt: int) -> str:
        """A JSON list, as the others answer. It knows no other words on a second attempt."""
        import torch

        from ...backbones.toybox import models
        from ...backbones.toybox.pdst import wordings

        pixels_13HW = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)[None].float() / 255
        facts = self._judge.facts(models.fit(pixels_13HW))[0]
        return json.dumps(wordings(_picture(facts, noun), count))


def _picture(facts: dict[str, Any], noun: str) -> Picture:
    """What was seen as a picture that can be worded; its look is never named."""
    from ...backbones.toybox.world import Look, Picture, Thing

    told = {key: facts[key] for key in ("pose", "accessory", "action")}
    named = {"scene"} | ({"accessory"} if told["accessory"] != "none" else set())
    named |= {"act"} if (told["pose"], told["action"]) != ("standing", "none") else set()
    thing = Thing(noun=noun, look=Look(colour="red"), **told)
    return Picture(things=(thing,), scene=facts["scene"], named=frozenset(named))
