"""Core's objects against ours, inside a running ComfyUI: relative errors and PSNR on one model folder."""

from __future__ import annotations

import importlib
import logging
import math
import sys
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.sample
import comfy.sd
import comfy.utils
import folder_paths
import torch
from torch import Tensor

PROMPT = "a photo of a red fish in the snow, sitting (very small)"
STRENGTH = 0.7


def ours(module: str) -> Any:
    """A module of the pack, under the name that ComfyUI gave the pack."""
    pack = next(name for name in sys.modules if name.endswith("/custom_nodes/likeness"))
    return importlib.import_module(f"{pack}.{module}")


class Warnings(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def relative(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def escaped(prompt: str) -> str:
    """Core reads parentheses as weights."""
    return prompt.replace("(", "\\(").replace(")", "\\)")


class Pair:
    """One base model, opened by us and by core. Each method adds what it measured to ``found``."""

    def __init__(self, folder: Path) -> None:
        base = ours("backbones.base").BaseModel(source=str(folder), dtype="fp32", device="cpu")
        self.name = folder.name
        self.ours = ours("backbones").open_backbone(base)
        self.model, self.clip, self.vae = ours("nodes.native").open_native(base)
        edge = self.ours.image_size // self.ours.latent_scale
        self.latent = (self.ours.latent_channels, edge, edge)
        self.noisy, self.t = drawn(2, *self.latent), torch.tensor([3, 870])
        self.found: dict[str, Any] = {}
        self.bar = comfy.utils.ProgressBar(20)  # a sign of life for whoever waits on a slow machine

    def compare(self, name: str, known: Any, model: Any, clip: Any, prompt: str = PROMPT) -> None:
        """Text states and noise prediction."""
        self.bar.update(1)
        states = known.encode_prompts([prompt, ""])
        expected = known.predict(self.noisy, self.t, states)
        self.found[f"{name} text"] = relative(clip.encode(escaped(prompt)), states.context[:1])
        self.found[f"{name} noise"] = relative(self.predicted(model, states.context), expected)

    def predicted(self, model: Any, context: Tensor) -> Tensor:
        comfy.model_management.load_models_gpu([model])
        predicted: Tensor = model.model.diffusion_model(self.noisy, self.t.float(), context=context)
        return predicted

    def base(self) -> None:
        known, into = self.ours, self.model.model.latent_format
        self.compare("base", known, self.model, self.clip)
        levels = known.schedule.abar.double()
        self.found["sigmas"] = relative(
            self.model.model.model_sampling.sigmas.double(), ((1 - levels) / levels).sqrt()
        )
        latents, image = drawn(1, *self.latent), torch.rand(1, 3, known.image_size, known.image_size)
        self.found["decode"] = relative(
            self.vae.decode(into.process_out(latents)).movedim(-1, 1), known.decode(latents)
        )
        encoded = into.process_in(self.vae.encode(image.movedim(1, -1)))
        self.found["encode"] = relative(encoded, known.encode_images(image * 2 - 1).mean)

    def picture(self, name: str, known: Any, model: Any, clip: Any, prompt: str = PROMPT) -> None:
        """Core's sampler and ours from the same noise: its DDIM walks the same grid."""
        self.bar.update(1)
        seed, steps, guidance = 7, 10, 4.0
        texts = known.encode_prompts([prompt]), known.encode_prompts([""])
        *_, latents = known.denoise(*texts, seeds=[seed], steps=steps, guidance=guidance)
        noise = ours("core.randomness").normal(self.latent, seed, "latents")[None]
        positive, negative = ([[clip.encode(escaped(words)), {}]] for words in (prompt, ""))
        empty = comfy.sample.fix_empty_latent_channels(model, torch.zeros(1, 4, *self.latent[1:]))
        grid = (steps, guidance, "ddim", "ddim_uniform")
        sampled = comfy.sample.sample(
            model, noise, *grid, positive, negative, empty, seed=seed, disable_pbar=True
        )
        theirs = self.vae.decode(sampled).movedim(-1, 1)
        error = float((theirs - known.decode(latents)).square().mean())
        self.found[f"{name} psnr"] = 10 * math.log10(1 / max(error, 1e-12))
        self.found[f"{name} contrast"] = float(theirs.std())

    def learned(self) -> None:
        """An embedding, a LoRA on every layer that can have one, and both in one picture."""
        with_concepts = ours("nodes.patching").with_concepts
        width = self.ours.encode_prompts([""]).context.shape[-1]
        rows = 0.5 * drawn(2, width)
        fish = self.saved("embedding", "embeddings", {"clip_l": rows}, "<fish>")
        knowing = self.ours.with_embeddings({"<fish>": rows})
        states = knowing.encode_prompts(["a red <fish> in the snow"]).context
        self.found["embedding:name"] = relative(
            self.clip.encode(f"a red embedding:{fish.path.stem} in the snow"), states
        )
        applied = with_concepts(self.model, self.clip, [(fish, 1.0)])[1]
        self.found["embedding applied"] = relative(applied.encode("a red <fish> in the snow"), states)

        spec = ours("backbones.base").LoraSpec(rank=3, alpha=6, conv=True, text_encoder=True)
        lora = self.ours.attach_lora(spec)
        named = {n: 0.1 * drawn(*p.shape, seed=i) for i, (n, p) in enumerate(lora.parameters().items())}
        lora.load(named)
        lora.set_strength(STRENGTH)
        style = self.saved("lora", "loras", named, "sks fish", rank=3, alpha=6)
        self.found["lora layers"] = len(named) // 2
        heard = Warnings()
        logging.getLogger().addHandler(heard)
        file = comfy.utils.load_torch_file(str(style.path))
        loaded = comfy.sd.load_lora_for_models(self.model, self.clip, file, STRENGTH, STRENGTH)
        logging.getLogger().removeHandler(heard)
        self.found["lora warnings"] = heard.lines
        self.compare("lora in core", self.ours, *loaded)
        context = self.ours.encode_prompts(["", ""]).context
        self.found["lora effect"] = relative(
            self.predicted(loaded[0], context), self.predicted(self.model, context)
        )
        both = with_concepts(self.model, self.clip, [(fish, 1.0), (style, STRENGTH)])
        self.compare("lora applied", self.ours, *both)
        self.picture("learned", knowing, *both, prompt="a red <fish> in the snow")
        lora.detach()
        self.compare("after lora", self.ours, self.model, self.clip)

    def delta(self) -> None:
        """A whole fine-tune: matrices, biases and norms of both networks, and a word of its own."""
        with_concepts = ours("nodes.patching").with_concepts
        weights = {f"unet.{n}": p for n, p in self.ours.module("unet").named_parameters()}
        text = self.ours.module("text_encoder").named_parameters()
        weights |= {f"text_encoder.{n.removeprefix('text_model.')}": p for n, p in text}
        kinds = ("attn", "conv1", "norm", "proj")
        chosen = sorted(n for n in weights if any(kind in n for kind in kinds))
        changes = {n: 0.05 * drawn(*weights[n].shape, seed=i) for i, n in enumerate(chosen)}
        rows = 0.5 * drawn(1, self.ours.encode_prompts([""]).context.shape[-1])
        concept = self.saved("delta", "loras", {**changes, "embedding.<ann>": rows}, "<ann> fish")
        with self.ours.patched(changes, STRENGTH):
            known = self.ours.with_embeddings({"<ann>": rows})
            applied = with_concepts(self.model, self.clip, [(concept, STRENGTH)])
            self.compare("delta applied", known, *applied, prompt="a photo of <ann> fish in the snow")
        self.compare("after delta", self.ours, self.model, self.clip)

    def saved(self, kind: Any, place: str, tensors: dict[str, Tensor], trigger: str, **metadata: Any) -> Any:
        artifact = ours("concepts.concept").Artifact(
            kind=kind, tensors=tensors, trigger=trigger, class_noun="fish", metadata=metadata
        )
        folder, name = Path(folder_paths.get_folder_paths(place)[0]), f"{self.name}-{kind}"
        save = ours("concepts.saving").save_concept
        return save(artifact, folder, name, family=self.ours.family, base_hash="")


def measured(folder: Path) -> dict[str, Any]:
    pair = Pair(folder)
    pair.base()
    pair.picture("base", pair.ours, pair.model, pair.clip)
    pair.learned()
    pair.delta()
    return pair.found
