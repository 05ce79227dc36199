"""The CLIP pair: transformers' CLIPModel on 64 x 64 pictures and toy captions.

    L = InfoNCE(pictures, captions)  +  0.5 L_facts

InfoNCE is CLIP's symmetric loss (Radford et al. 2021, arXiv:2103.00020, figure 3). L_facts asks linear heads
on both towers for the renderer's facts (noun, colours, scene, ...) wherever the caption tells them; the heads
are thrown away. It makes both towers see details within minutes on a CPU.

The text tower is also the UNet's text encoder, so it is frozen before the vision tower is done
(``ClipVisionPart``).
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, CLIPTextModel, CLIPTokenizer

from .. import captions, world
from . import data, tokenizer
from .loop import Schedule, checkpoint_path, device

WIDTH, LAYERS, HEADS = 192, 4, 4
PIXEL_MEAN, PIXEL_STD = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
FACTS: dict[str, tuple[str, ...]] = {
    "noun": world.NOUNS,
    "noun2": ("none", *world.NOUNS),
    "colour": ("odd", *world.COLOURS),
    "colour2": ("odd", *world.COLOURS),
    "pattern": world.PATTERNS,
    "scene": tuple(world.SCENES),
    "light": tuple(world.LIGHTS),
    "accessory": tuple(world.ACCESSORIES),
    "pose": tuple(world.POSES),
    "action": tuple(world.ACTIONS),
    "relation": ("", *world.RELATIONS),
    "other_colour": ("odd", *world.COLOURS),
    "other_pattern": world.PATTERNS,
}
UNTOLD = -100


def facts(picture: world.Picture) -> list[int]:
    """The index of each fact in its row of FACTS, ``UNTOLD`` where the picture's caption does not tell it."""
    first, second = picture.things[0], picture.things[-1]
    two, named = len(picture.things) == 2, picture.named
    looks = {
        **_look_facts(first, "look" in named, ("colour", "colour2", "pattern")),
        **_look_facts(second, two and "look2" in named, ("other_colour", "", "other_pattern")),
    }
    told = {
        "noun": first.noun,
        "noun2": second.noun if two else "none",
        **looks,
        "scene": picture.scene if "scene" in named else None,
        "light": picture.light,
        "accessory": first.accessory,
        "pose": first.pose,
        "action": first.action,
        "relation": picture.relation if "relation" in named or not two else None,
    }
    return [UNTOLD if told.get(key) is None else row.index(told[key]) for key, row in FACTS.items()]


def _look_facts(thing: world.Thing, told: bool, keys: tuple[str, str, str]) -> dict[str, str | None]:
    look = thing.look
    second = look.colour2 if look.pattern != "plain" else None
    return dict(zip(keys, (look.colour, second, look.pattern) if told else (None,) * 3, strict=True))


def clip_config(vocabulary: int, end: int) -> CLIPConfig:
    shape = {
        "hidden_size": WIDTH,
        "intermediate_size": 4 * WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "projection_dim": WIDTH,
        "hidden_act": "quick_gelu",
    }
    text = {
        **shape,
        "vocab_size": vocabulary,
        "max_position_embeddings": tokenizer.MAX_LENGTH,
        "bos_token_id": end - 1,
        "eos_token_id": end,
        "pad_token_id": end,
    }
    return CLIPConfig(
        text_config=text, vision_config={**shape, "image_size": 64, "patch_size": 8}, projection_dim=WIDTH
    )


class TwoTowers(nn.Module):
    """A CLIPModel with its throw-away fact heads."""

    def __init__(self, clip: CLIPModel) -> None:
        super().__init__()
        self.clip = clip
        self.image_heads = nn.ModuleDict({key: nn.Linear(WIDTH, len(row)) for key, row in FACTS.items()})
        self.text_heads = nn.ModuleDict({key: nn.Linear(WIDTH, len(row)) for key, row in FACTS.items()})


@dataclass
class ClipPart:
    """Both towers. Its text tower becomes the UNet's text encoder, so it ends here."""

    state_dir: Path
    schedule: Schedule = field(
        default_factory=lambda: Schedule(
            steps=750,
            batch=64,
            lr=1.5e-3,
            warmup=150,
            decay=0.5,
            weight_decay=0.05,
            ema=0.998,
            save_every=250,
        )
    )
    name: str = "clip"
    num_pictures: int = data.NUM_PICTURES

    def build(self) -> nn.Module:
        self.tokenizer = CLIPTokenizer.from_pretrained(tokenizer.train(self.state_dir))
        self.images = data.images(self.state_dir, self.num_pictures)
        return TwoTowers(CLIPModel(clip_config(len(self.tokenizer), self.tokenizer.eos_token_id)))

    def loss(self, model: nn.Module, step: int) -> dict[str, Tensor]:
        picks = data.batch_indices(self.schedule.seed + 1, step, self.schedule.batch, len(self.images))
        pictures = [pick_caption(int(i), step) for i in picks]
        pixels = (data.to_tensor(self.images[picks]) * 2 - 1).to(device())
        words = self.tokenizer([captions.caption(p) for p in pictures], padding=True, return_tensors="pt").to(
            device()
        )
        return clip_loss(
            model, pixels, words["input_ids"], torch.tensor([facts(p) for p in pictures]).to(device())
        )

    def export(self, model: nn.Module, weights_dir: Path) -> None:
        clip = model.clip.half()
        clip.save_pretrained(weights_dir / "clip")
        tensors = {
            k: v.cpu().contiguous() for k, v in clip.state_dict().items() if not k.startswith("text_model.")
        }
        save_file(tensors, weights_dir / "clip" / "model.safetensors", metadata={"format": "pt"})
        save_text_encoder(clip, weights_dir / "text_encoder")
        clip.float()
        shutil.copytree(self.state_dir / "tokenizer", weights_dir / "tokenizer", dirs_exist_ok=True)


class ClipVisionPart(ClipPart):
    """The vision tower and both projections go on alone; the text tower stays as the UNet knows it."""

    def __init__(self, state_dir: Path) -> None:
        super().__init__(
            state_dir,
            Schedule(
                steps=3000,
                batch=128,
                lr=1e-3,
                warmup=50,
                weight_decay=0.05,
                ema=0.998,
                save_every=100,
                seed=1,
            ),
            "clip_vision",
        )

    def build(self) -> nn.Module:
        model = super().build()
        state = torch.load(checkpoint_path(self.state_dir, "clip"), map_location="cpu", weights_only=True)
        model.load_state_dict({**state["model"], **state["average"]})
        model.clip.text_model.requires_grad_(False)
        model.text_heads.requires_grad_(False)
        return model


def save_text_encoder(clip: CLIPModel, folder: Path) -> None:
    """The text tower as a CLIPTextModel folder, its keys under ``text_model.`` as Stable Diffusion's are."""
    CLIPTextModel(clip.config.text_config).half().save_pretrained(folder)
    tensors = {f"text_model.{k}": v.cpu().contiguous() for k, v in clip.text_model.state_dict().items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def pick_caption(number: int, step: int) -> world.Picture:
    """Training picture ``number``, half the time with all told that may be, else with other things named."""
    picture = world.sample_picture(number)
    full = world.fully_named(picture)
    if step % 2 == 0 and not world.caption_reserved(full):
        return full
    return world.renamed(picture, step * 1_000_003 + number)


def clip_loss(model: TwoTowers, pixels: Tensor, words: Tensor, told_BF: Tensor) -> dict[str, Tensor]:
    """The loss above; ``right`` is the share of captions ranked first within the batch."""
    out = model.clip(input_ids=words, pixel_values=pixels)
    same = torch.arange(len(pixels), device=pixels.device)
    logits = out.logits_per_image
    contrast = (F.cross_entropy(logits, same) + F.cross_entropy(logits.T, same)) / 2
    states = (
        (model.image_heads, out.vision_model_output.pooler_output),
        (model.text_heads, out.text_model_output.pooler_output),
    )
    asked = [
        F.cross_entropy(heads[key](state), told_BF[:, i], ignore_index=UNTOLD)
        for heads, state in states
        for i, key in enumerate(FACTS)
        if (told_BF[:, i] != UNTOLD).any()
    ]
    facts_loss = torch.stack(asked).mean()
    right = (logits.argmax(1) == same).float().mean()
    return {"loss": contrast + 0.5 * facts_loss, "facts": facts_loss.detach(), "right": right.detach()}
