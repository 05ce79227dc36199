"""Who proposes layouts, writes captions, gives backgrounds: the widgets that choose, what they open."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import host
from ..host import io

if TYPE_CHECKING:
    from ...trainers.events import Phase

CATEGORY = "Likeness/scene"
RULES, CHAT, LOCAL, TOYBOX = "rules", "chat server", "local model", "toybox"
ANSWERERS = [RULES, CHAT, LOCAL, TOYBOX]
BACKGROUNDS = ["drawn", "folder", "noise", TOYBOX]


def answerer_input(name: str) -> Any:
    return io.Combo.Input(
        name,
        options=ANSWERERS,
        default=RULES,
        tooltip="rules: no model needed. chat server: the one that this machine's LIKENESS_CHAT_URL, "
        "LIKENESS_CHAT_MODEL and LIKENESS_CHAT_KEY name. local model: the folder in model. toybox: the "
        "built-in world's sizes, places and words, for a model that knows no other.",
    )


def model_input() -> Any:
    return io.String.Input(
        "model",
        default="",
        tooltip="For local model: its folder below ComfyUI's models folder, such as llm/NAME.",
    )


def background_inputs(tooltip: str) -> list[Any]:
    return [
        io.Combo.Input("backgrounds", options=BACKGROUNDS, default="drawn", tooltip=tooltip),
        io.String.Input(
            "background_folder",
            default="",
            tooltip="For folder: pictures below ComfyUI's input folder, or a full path. Names like "
            "beach.jpg help.",
        ),
    ]


def proposer_of(kind: str, model: str) -> Any:
    """A ``composing.proposing.Proposer``. LikenessError where it has no server or no model."""
    from ...composing.language import LanguageProposer, LocalLanguageModel
    from ...composing.proposing import RuleBased

    if kind == RULES:
        return RuleBased()
    if kind == TOYBOX:
        from ...composing.toybox import ToyboxProposer

        return ToyboxProposer()
    if kind == CHAT:
        from ...composing.chat import server_from_settings

        return LanguageProposer(server_from_settings())
    with host.training_mode():
        return LanguageProposer(LocalLanguageModel(_model_folder(model), device=_device()))


def captioner_of(kind: str, model: str) -> Any:
    """A ``composing.recaption.Captioner``. LikenessError where it has no server or no model."""
    from ...composing.recaption import RuleCaptioner

    if kind == RULES:
        return RuleCaptioner()
    if kind == TOYBOX:
        from ...composing.toybox import ToyboxCaptioner

        return ToyboxCaptioner()
    from ...composing.captioners import ChatCaptioner, open_captioner

    if kind == CHAT:
        from ...composing.chat import server_from_settings

        return ChatCaptioner(server_from_settings())
    with host.training_mode():
        return open_captioner(_model_folder(model), device=_device())


def backgrounds_of(kind: str, folder: str) -> Any:
    """A ``composing.backgrounds.Backgrounds``. LikenessError where the folder has no pictures."""
    from ...composing.backgrounds import DrawnBackgrounds, FolderBackgrounds, NoiseBackgrounds

    if kind == TOYBOX:
        from ...composing.toybox import ToyboxBackgrounds

        return ToyboxBackgrounds()
    if kind != "folder":
        return DrawnBackgrounds() if kind == "drawn" else NoiseBackgrounds()
    from ...core.paths import inside

    text = folder.strip()
    path = Path(text).expanduser()
    if not path.is_absolute():
        path = inside(host.current.input, text, what="folder of backgrounds")
    return FolderBackgrounds(path)


def phases(work: Any) -> Generator[Phase, None, Any]:
    """The progress of one of ``composing``'s works as the host shows it; its return value."""
    from contextlib import closing

    from ...trainers.events import Phase

    with closing(work):
        while True:
            try:
                progress = next(work)
            except StopIteration as end:
                return end.value
            yield Phase(progress.name, progress.done, progress.total)


def _model_folder(model: str) -> Path:
    from ...core.paths import inside

    return inside(host.current.models, model, what="model")


def _device() -> str:
    from ...backbones.device import device_name

    return device_name(host.current.device())
