"""Back ends by name: which locator with which masker, each opened when it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...core.errors import LikenessError
from .base import Locator, Masker

Places = Sequence[Path]


@dataclass(frozen=True, kw_only=True)
class Segmenter:
    """A back end at work: ``locator`` is None where boxes are given, or are not needed."""

    name: str
    locator: Locator | None
    masker: Masker

    @property
    def id(self) -> str:
        return f"{self.locator.id} + {self.masker.id}" if self.locator else self.masker.id


def _grabcut(places: Places, device: str) -> Masker:
    from .grabcut import GrabCut

    return GrabCut()


def _sam2(places: Places, device: str) -> Masker:
    from .sam2 import open_sam2

    return open_sam2(places, device)


def _saliency(places: Places, device: str) -> Masker:
    from .saliency import Saliency

    return Saliency.open(places, device)


def _toybox(places: Places, device: str) -> Locator:
    from .toybox import ToyboxLocator

    return ToyboxLocator()


def _florence2(places: Places, device: str) -> Locator:
    from .files import find_folder
    from .florence2 import Florence2Locator

    such_as = "florence-community/Florence-2-base"
    return Florence2Locator.open(find_folder("florence2", places, such_as=such_as), device)


def _owl(places: Places, device: str) -> Locator:
    from .files import find_folder
    from .owl import OwlLocator

    such_as = "google/owlv2-base-patch16-ensemble"
    return OwlLocator.open(find_folder("owl", places, such_as=such_as), device)


@dataclass(frozen=True)
class Method:
    locator: Callable[[Places, str], Locator] | None
    masker: Callable[[Places, str], Masker]
    what: str


METHODS: dict[str, Method] = {
    "grabcut": Method(None, _grabcut, "colours in the middle against the edges; no weights"),
    "toybox": Method(_toybox, _grabcut, "Toybox's own grounding, then GrabCut; no weights"),
    "florence2+sam2": Method(_florence2, _sam2, "Florence-2 finds the class noun, SAM 2 cuts it out"),
    "owl+sam2": Method(_owl, _sam2, "OWL-ViT or OWLv2 finds the class noun, SAM 2 cuts it out"),
    "florence2+grabcut": Method(_florence2, _grabcut, "Florence-2 finds it, GrabCut cuts it out"),
    "sam2": Method(None, _sam2, "SAM 2 in the boxes, or at the points, that you give"),
    "saliency": Method(None, _saliency, "what the photo is of, by IS-Net"),
}


def open_segmenter(name: str, *, models: Places = (), device: str = "cpu") -> Segmenter:
    """Open a back end; weights are looked for below the folders ``models``.

    Raises LikenessError for an unknown name and for missing weights, MissingPackage for a missing package.
    """
    method = METHODS.get(name)
    if method is None:
        raise LikenessError(
            f"There is no segmentation method {name!r}", expected=f"one of {', '.join(METHODS)}"
        )
    device = _device() if device == "auto" else device
    return Segmenter(
        name=name,
        locator=method.locator(models, device) if method.locator else None,
        masker=method.masker(models, device),
    )


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
