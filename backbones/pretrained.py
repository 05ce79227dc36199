"""Transformers' models from folders on this machine. Nothing is downloaded, and no pickle or code trusted."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import LikenessError

if TYPE_CHECKING:
    from PIL.Image import Image


def load_pretrained(model: Any, processor: Any, folder: Path, device: str) -> tuple[Any, Any]:
    """A model of the class ``model`` and its ``processor``, a class too. Nothing of it is trainable.

    LikenessError when the folder is not one of such a model, whole, with weights in safetensors.
    """
    try:
        opened = model.from_pretrained(
            str(folder), local_files_only=True, use_safetensors=True, trust_remote_code=False
        )
        reader = processor.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # transformers, safetensors and json each raise their own
        raise LikenessError(
            f"{folder} cannot be opened as a {model.__name__}: {error}",
            expected="config.json, model.safetensors and the processor's files of such a model",
        ) from error
    return opened.eval().requires_grad_(False).to(device), reader


def answer(model: Any, processor: Any, image: Image, words: str, *, max_tokens: int, **sampling: Any) -> str:
    """What a model that chats about pictures says; ``sampling`` as transformers' ``generate`` takes it."""
    import torch

    content = [{"type": "image", "image": image}, {"type": "text", "text": words}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    ).to(model.device)
    with torch.no_grad():
        ids = model.generate(**inputs, max_new_tokens=max_tokens, **sampling)
    new = ids[:, inputs["input_ids"].shape[1] :]
    return str(processor.batch_decode(new, skip_special_tokens=True)[0])
