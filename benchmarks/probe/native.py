"""Core's objects against ours and diffusers', inside a running ComfyUI: relative errors, and PSNR in dB."""

from __future__ import annotations

import copy
import importlib
import logging
import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.sample
import comfy.sampler_helpers
import comfy.samplers
import comfy.sd
import comfy.utils
import folder_paths
import torch
from torch import Tensor

PROMPT = "a photo of a red fish in the snow, sitting (very small)"
STRENGTH = 0.7
TIMESTEPS = (3, 250, 500, 750, 990)


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

    def __init__(self, source: str, edge: int) -> None:
        base = ours("backbones.base").BaseModel(source=source, dtype="fp32", device="cpu")
        self.name = Path(source).stem
        self.ours = ours("backbones").open_backbone(base)
        self.model, self.clip, self.vae = ours("nodes.native").open_native(base)
        edge = edge or self.ours.image_size // self.ours.latent_scale
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
        pixels = self.latent[1] * known.latent_scale
        latents, image = drawn(1, *self.latent), torch.rand(1, 3, pixels, pixels)
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
        size = tuple(edge * known.latent_scale for edge in self.latent[1:])
        *_, latents = known.denoise(*texts, seeds=[seed], steps=steps, guidance=guidance, size=size)
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

    # --- what was learned -------------------------------------------------------------------------

    @cached_property
    def rows(self) -> Tensor:
        return 0.5 * drawn(2, self.ours.encode_prompts([""]).context.shape[-1])

    @cached_property
    def fish(self) -> Any:
        return self.saved("embedding", "embeddings", {"clip_l": self.rows}, "<fish>")

    def embedding(self) -> None:
        """As core's ``embedding:name``, and as our word on core's objects."""
        known = self.ours.with_embeddings({"<fish>": self.rows})
        states = known.encode_prompts(["a red <fish> in the snow"]).context
        named = self.clip.encode(f"a red embedding:{self.fish.path.stem} in the snow")
        self.found["embedding:name"] = relative(named, states)
        applied = ours("nodes.patching").with_concepts(self.model, self.clip, [(self.fish, 1.0)])[1]
        self.found["embedding applied"] = relative(applied.encode("a red <fish> in the snow"), states)

    @contextmanager
    def with_lora(self) -> Iterator[dict[str, Tensor]]:
        """Ours with a LoRA on every layer that can have one; its tensors."""
        spec = ours("backbones.base").LoraSpec(rank=3, alpha=6, conv=True, text_encoder=True)
        lora = self.ours.attach_lora(spec)
        named = {n: 0.1 * drawn(*p.shape, seed=i) for i, (n, p) in enumerate(lora.parameters().items())}
        lora.load(named)
        lora.set_strength(STRENGTH)
        yield named
        lora.detach()

    @cached_property
    def style(self) -> Any:
        with self.with_lora() as named:
            self.found["lora layers"] = len(named) // 2
            return self.saved("lora", "loras", named, "sks fish", rank=3, alpha=6)

    @cached_property
    def loaded(self) -> tuple[Any, Any]:
        """Core's MODEL and CLIP with the file, as its LoraLoader does it."""
        file, heard = comfy.utils.load_torch_file(str(self.style.path)), Warnings()
        logging.getLogger().addHandler(heard)
        loaded = comfy.sd.load_lora_for_models(self.model, self.clip, file, STRENGTH, STRENGTH)
        logging.getLogger().removeHandler(heard)
        self.found["lora warnings"] = heard.lines
        return loaded[0], loaded[1]

    def lora(self) -> None:
        """In core's loader and through our node, against our hooks and against diffusers' own loader."""
        loaded, context = self.loaded, self.ours.encode_prompts(["", ""]).context
        both = ours("nodes.patching").with_concepts(self.model, self.clip, [(self.style, STRENGTH)])
        with self.with_lora():
            self.compare("lora in core", self.ours, *loaded)
            self.compare("lora applied", self.ours, *both)
        with self.in_diffusers():
            self.compare("lora in diffusers", self.ours, *loaded)
        with_it, without = (self.predicted(model, context) for model in (loaded[0], self.model))
        self.found["lora effect"] = relative(with_it, without)
        self.compare("after lora", self.ours, self.model, self.clip)

    @contextmanager
    def in_diffusers(self) -> Iterator[None]:
        """Our modules with the file in diffusers' own loader: no hook of ours takes part."""
        from diffusers import DDIMScheduler, StableDiffusionPipeline

        parts = {part: self.ours.module(part) for part in ("unet", "text_encoder")}
        absent = dict.fromkeys(("vae", "tokenizer", "safety_checker", "feature_extractor"))
        pipeline = StableDiffusionPipeline(
            **parts, **absent, scheduler=DDIMScheduler(), requires_safety_checker=False
        )
        file = self.style.path
        pipeline.load_lora_weights(file.parent, weight_name=file.name, adapter_name="it")
        pipeline.set_adapters(["it"], [STRENGTH])
        yield
        pipeline.unload_lora_weights()

    def learned_picture(self) -> None:
        """A word and a LoRA together in core's sampler."""
        concepts = [(self.fish, 1.0), (self.style, STRENGTH)]
        model, clip = ours("nodes.patching").with_concepts(self.model, self.clip, concepts)
        known = self.ours.with_embeddings({"<fish>": self.rows})
        with self.with_lora():
            self.picture("learned", known, model, clip, "a red <fish> in the snow")

    def delta(self) -> None:
        """A whole fine-tune, matrices, biases and norms of both networks, with a word in its file."""
        with_concepts = ours("nodes.patching").with_concepts
        weights = {f"unet.{n}": p for n, p in self.ours.module("unet").named_parameters()}
        text = self.ours.module("text_encoder").named_parameters()
        weights |= {f"text_encoder.{n.removeprefix('text_model.')}": p for n, p in text}
        kinds = ("attn", "conv1", "norm", "proj")
        chosen = sorted(n for n in weights if any(kind in n for kind in kinds))
        changes = {n: 0.05 * drawn(*weights[n].shape, seed=i) for i, n in enumerate(chosen)}
        word = {"embedding.<toy>": self.rows}
        concept = self.saved("delta", "loras", {**changes, **word}, "sks fish")
        with self.ours.patched(changes, STRENGTH) as tuned:
            model, clip = with_concepts(self.model, self.clip, [(concept, STRENGTH)])
            self.compare("delta applied", tuned, model, clip)
            known = tuned.with_embeddings({"<toy>": self.rows})
            self.compare("delta's word", known, model, clip, "a <toy> in the snow")
        self.compare("after delta", self.ours, self.model, self.clip)

    def neti(self) -> None:
        """A word that is another one at every layer and timestep."""
        row_D = ours("backbones.tokens").initial_row(self.ours, "dog")
        mapper = ours("backbones.mapper").SpaceTimeMapper(
            num_layers=self.ours.num_cross_attentions, width=len(row_D), target_norm=float(row_D.norm())
        )
        word = self.saved("neti", "embeddings", mapper.state_dict(), "<finn>")
        self.sample("neti", word, "a photo of <finn> in the snow")

    def custom_diffusion(self) -> None:
        """Every cross-attention's keys and values moved by half of their spread, and a modifier token."""
        weights = dict(self.ours.module("unet").named_parameters())
        chosen = [name for name in weights if ".attn2.to_k." in name or ".attn2.to_v." in name]
        deltas = {
            f"unet.{name}": 0.5 * weights[name].std() * drawn(*weights[name].shape, seed=i)
            for i, name in enumerate(chosen)
        }
        row_D = ours("backbones.tokens").initial_row(self.ours, "cat")
        token = {"embedding.<ann>": row_D[None] + 0.1 * row_D.std() * drawn(1, len(row_D))}
        words = {"words": [["<ann>", "dog"]]}
        concept = self.saved("delta", "loras", {**deltas, **token}, "<ann> dog", **words)
        self.sample("custom diffusion", concept, "photo of a <ann> dog on the beach")

    def sample(self, name: str, concept: Any, prompt: str) -> None:
        """The noise that core's sampler takes away, against ours; and ours with the concept and without."""
        self.bar.update(1)
        plain = self.noises(self.ours, prompt)
        with ours("concepts.applying").apply_concepts(self.ours, [(concept, 1.0)], other_base=True) as known:
            expected = self.noises(known, prompt)
        model, clip = ours("nodes.patching").with_concepts(self.model, self.clip, [(concept, 1.0)])
        taken = self.taken(model, clip.encode_from_tokens_scheduled(clip.tokenize(prompt)))
        self.found[f"{name} noise"] = max(map(relative, taken, expected))
        self.found[f"{name} effect"] = min(map(relative, expected, plain))

    def noises(self, known: Any, prompt: str) -> list[Tensor]:
        states = known.encode_prompts([prompt])
        return [known.predict(self.noisy[:1], torch.tensor([t]), states) for t in TIMESTEPS]

    def taken(self, model: Any, conditioning: Any) -> list[Tensor]:
        """As a sampler asks for it: with what the model does to conditionings, and patches that see them."""
        comfy.model_management.load_models_gpu([model])
        model.pre_run()
        noises = []
        for abar in self.ours.schedule.abar[list(TIMESTEPS)].tolist():
            sigma = ((1 - abar) / abar) ** 0.5
            x = self.noisy[:1] / abar**0.5
            named = {"positive": comfy.sampler_helpers.convert_cond(conditioning)}
            options = copy.deepcopy(model.model_options)
            comfy.sampler_helpers.prepare_model_patcher(model, named, options)
            ready = comfy.samplers.process_conds(model.model, x, named, x.device)
            sigmas = torch.full((1,), sigma)
            clean = comfy.samplers.calc_cond_batch(model.model, list(ready.values()), x, sigmas, options)[0]
            noises.append((x - clean) / sigma)
        return noises

    def saved(self, kind: Any, place: str, tensors: dict[str, Tensor], trigger: str, **metadata: Any) -> Any:
        artifact = ours("concepts.concept").Artifact(
            kind=kind, tensors=tensors, trigger=trigger, class_noun="fish", metadata=metadata
        )
        folder, name = Path(folder_paths.get_folder_paths(place)[0]), f"{self.name}-{kind}"
        save = ours("concepts.saving").save_concept
        return save(artifact, folder, name, family=self.ours.family, base_hash="")


def measured(source: str, stages: Sequence[str], edge: int) -> dict[str, Any]:
    """Of the base model ``source``, by stage (STAGES); ``edge`` of the latents, 0 for the model's own."""
    pair = Pair(source, edge)
    for stage in stages:
        STAGES[stage](pair)
    return pair.found


STAGES = {
    "base": Pair.base,
    "picture": lambda pair: pair.picture("base", pair.ours, pair.model, pair.clip),
    "embedding": Pair.embedding,
    "lora": Pair.lora,
    "learned picture": Pair.learned_picture,
    "delta": Pair.delta,
    "neti": Pair.neti,
    "custom diffusion": Pair.custom_diffusion,
}


def open_weights() -> str:
    """A hash of every tensor of the base model that the pack has open; "" when it has none."""
    tensors = {
        f"{part}.{name}": tensor
        for backbone in ours("backbones")._opened.values()
        for part in ("unet", "vae", "text_encoder")
        for name, tensor in getattr(backbone, part).state_dict().items()
    }
    return str(ours("core.hashing").hash_tensors(tensors)) if tensors else ""
