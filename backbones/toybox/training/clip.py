"""The CLIP pair: transformers' CLIPModel on 64 x 64 pictures and toy captions.

    text      L = L_facts(captions)
    pictures  L = InfoNCE(pictures, captions) + 0.5 L_facts(pictures)

L_facts asks linear heads on the pooled state for the renderer's facts (noun, colours, scene, ...) wherever
the caption tells them; the heads are thrown away. The text tower learns to read first, in minutes, because
the UNet waits for it; the vision tower is then taught against the frozen text tower (Zhai et al. 2022,
arXiv:2111.07991) with CLIP's symmetric loss (Radford et al. 2021, arXiv:2103.00020, figure 3).
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


class Tower(nn.Module):
    """A tower of CLIP with throw-away fact heads on its pooled state."""

    def __init__(self, clip: nn.Module) -> None:
        super().__init__()
        self.clip = clip
        self.heads = nn.ModuleDict({key: nn.Linear(WIDTH, len(row)) for key, row in FACTS.items()})


def new_clip(state_dir: Path) -> tuple[CLIPModel, CLIPTokenizer]:
    """Both towers with random weights, and the tokenizer, trained if there is none."""
    words = CLIPTokenizer.from_pretrained(tokenizer.train(state_dir))
    return CLIPModel(clip_config(len(words), words.eos_token_id)), words


@dataclass
class ClipTextPart:
    """The text tower, which is also the UNet's text encoder."""

    state_dir: Path
    schedule: Schedule = field(
        default_factory=lambda: Schedule(
            steps=1100, batch=64, lr=1e-3, warmup=100, decay=0.7, weight_decay=0.05, ema=0.998
        )
    )
    name: str = "clip_text"
    exported: str = "text_encoder/model.safetensors"
    num_pictures: int = data.NUM_PICTURES

    def build(self) -> nn.Module:
        clip, self.tokenizer = new_clip(self.state_dir)
        return Tower(clip.text_model)

    def loss(self, model: nn.Module, step: int) -> dict[str, Tensor]:
        picks = data.batch_indices(self.schedule.seed + 1, step, self.schedule.batch, self.num_pictures)
        pictures = [pick_caption(int(i), step) for i in picks]
        state = model.clip(tokens(self.tokenizer, pictures)).pooler_output
        loss, right = facts_loss(model.heads, state, pictures)
        return {"loss": loss, "right": right}

    def export(self, model: nn.Module, weights_dir: Path) -> None:
        """The tower as a CLIPTextModel folder, its keys under ``text_model.`` as Stable Diffusion's are."""
        folder = weights_dir / "text_encoder"
        CLIPTextModel(model.clip.config).half().save_pretrained(folder)
        tensors = {f"text_model.{k}": v.cpu().half().contiguous() for k, v in model.clip.state_dict().items()}
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        shutil.copytree(self.state_dir / "tokenizer", weights_dir / "tokenizer", dirs_exist_ok=True)


@dataclass
class ClipPart:
    """The vision tower and both projections, against the text tower as the UNet knows it."""

    state_dir: Path
    schedule: Schedule = field(
        default_factory=lambda: Schedule(
            steps=4000, batch=128, lr=1e-3, warmup=100, weight_decay=0.05, ema=0.998, seed=1
        )
    )
    name: str = "clip"
    exported: str = "clip/model.safetensors"
    num_pictures: int = data.NUM_PICTURES

    def build(self) -> nn.Module:
        self.images = data.images(self.state_dir, self.num_pictures)
        clip, self.tokenizer = new_clip(self.state_dir)
        path = checkpoint_path(self.state_dir, "clip_text")
        average = torch.load(path, map_location="cpu", weights_only=True)["average"]
        clip.text_model.load_state_dict(
            {key[5:]: value for key, value in average.items() if key.startswith("clip.")}
        )
        clip.text_model.requires_grad_(False)
        return Tower(clip)

    def loss(self, model: nn.Module, step: int) -> dict[str, Tensor]:
        picks = data.batch_indices(self.schedule.seed + 1, step, self.schedule.batch, len(self.images))
        pictures = [pick_caption(int(i), step) for i in picks]
        pixels = (data.to_tensor(self.images[picks]) * 2 - 1).to(device())
        out = model.clip(input_ids=tokens(self.tokenizer, pictures), pixel_values=pixels)
        contrast, right = contrastive_loss(out.logits_per_image)
        facts, _ = facts_loss(model.heads, out.vision_model_output.pooler_output, pictures)
        return {"loss": contrast + 0.5 * facts, "facts": facts.detach(), "right": right}

    def export(self, model: nn.Module, weights_dir: Path) -> None:
        """A CLIPModel folder without the text tower, which lies in ``text_encoder``."""
        clip = model.clip
        clip.save_pretrained(weights_dir / "clip")
        tensors = {
            k: v.cpu().half().contiguous()
            for k, v in clip.state_dict().items()
            if not k.startswith("text_model.")
        }
        save_file(tensors, weights_dir / "clip" / "model.safetensors", metadata={"format": "pt"})


def pick_caption(number: int, step: int) -> world.Picture:
    """Training picture ``number``, half the time with all told that may be, else with other things named."""
    picture = world.sample_picture(number)
    full = world.fully_named(picture)
    if step % 2 == 0 and not world.caption_reserved(full):
        return full
    return world.renamed(picture, step * 1_000_003 + number)


def tokens(words: CLIPTokenizer, pictures: list[world.Picture]) -> Tensor:
    """The token ids of the pictures' captions (B, L), L the longest of them."""
    texts = [captions.caption(picture) for picture in pictures]
    return words(texts, padding=True, return_tensors="pt")["input_ids"].to(device())


def facts_loss(
    heads: nn.ModuleDict, state_BD: Tensor, pictures: list[world.Picture]
) -> tuple[Tensor, Tensor]:
    """L_facts, the mean over the kinds of fact, and the share of told facts that the heads get right."""
    told_BF = torch.tensor([facts(picture) for picture in pictures]).to(state_BD.device)
    losses, right = [], []
    for i, key in enumerate(FACTS):
        told_B = told_BF[:, i] != UNTOLD
        if told_B.any():
            logits = heads[key](state_BD[told_B])
            losses.append(F.cross_entropy(logits, told_BF[told_B, i]))
            right.append((logits.argmax(1) == told_BF[told_B, i]).float())
    return torch.stack(losses).mean(), torch.cat(right).mean().detach()


def contrastive_loss(logits_BB: Tensor) -> tuple[Tensor, Tensor]:
    """InfoNCE of pictures (rows) and captions, both ways, and the share of captions ranked first."""
    same = torch.arange(len(logits_BB), device=logits_BB.device)
    loss = (F.cross_entropy(logits_BB, same) + F.cross_entropy(logits_BB.T, same)) / 2
    return loss, (logits_BB.argmax(1) == same).float().mean()
