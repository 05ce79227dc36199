"""Stable Diffusion 1.x and 2.x (Rombach et al. 2021, arXiv:2112.10752): noise and v prediction. What XL has
besides is ``sdxl.py``.

The UNet works in the precision that was asked for. Text encoder, VAE, losses and everything trainable stay
in fp32: a placeholder's fine steps would vanish in half precision, and so would an image's last bits.
"""
# Shapes: B batch, C latent channels, H W latent height and width, L tokens, D text width, N vectors.

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..core.errors import LikenessError
from ..core.randomness import normal
from .base import BaseModel, Latents, LayerStates, LoraSpec, Part, Prediction, TextStates, WordMapper
from .inference import normal_tensors
from .layered import cross_attentions, encode_layers, packed, routed
from .lora import HookLora, without_hooks
from .schedule import Schedule
from .tokens import ClipTokens, Spliced, check_placeholder, scattered, splice

ROWS = ("clip_l", "clip_g")  # ComfyUI's names of the text encoders, in our order
_VAE_PIXELS = 512 * 512  # how many the VAE sees at once; larger batches go in slices


@dataclass(kw_only=True, eq=False)
class SDBackbone:
    """A loaded model; satisfies ``base.Backbone``, whose docstrings are not repeated here.

    Views (``with_embeddings``) share the modules. ``dtype`` is what the UNet computes in; a module whose
    weights are fp32 (``private_copy``) computes in it under autocast.
    """

    base: BaseModel
    family: str
    content_hash: str
    unet: nn.Module
    vae: nn.Module
    text_encoder: nn.Module
    tokens: ClipTokens
    schedule: Schedule
    image_size: int
    device: torch.device
    dtype: torch.dtype
    embeddings: Mapping[str, Tensor] = field(default_factory=dict)
    mappers: Mapping[str, WordMapper] = field(default_factory=dict)
    num_cross_attentions: int = field(init=False)
    prediction: Prediction = field(init=False)
    num_train_timesteps: int = field(init=False)
    latent_scale: int = field(init=False)
    size_step: int = field(init=False)
    latent_channels: int = field(init=False)

    def __post_init__(self) -> None:
        self.num_cross_attentions = len(cross_attentions(self.unet))
        self.prediction = self.schedule.prediction
        self.num_train_timesteps = self.schedule.num_timesteps
        self.latent_scale = 2 ** (len(_config(self.vae).block_out_channels) - 1)
        self.size_step = self.latent_scale * 2 ** (len(_config(self.unet).block_out_channels) - 1)
        self.latent_channels = int(_config(self.vae).latent_channels)

    # --- text -----------------------------------------------------------------------------------------

    @property
    def text_encoders(self) -> dict[Part, nn.Module]:
        return {"text_encoder": self.text_encoder}

    @property
    def text_widths(self) -> dict[str, int]:
        tables = [token_embedding_of(encoder).weight for encoder in self.text_encoders.values()]
        return {name: table.shape[1] for name, table in zip(ROWS, tables, strict=False)}

    def token_ids(self, text: str) -> list[int]:
        return list(self.tokens.ids(text))

    @normal_tensors
    def token_embedding(self, text: str) -> Tensor:
        ids = torch.tensor(self.token_ids(text), dtype=torch.long)
        tables = [token_embedding_of(encoder).weight.detach() for encoder in self.text_encoders.values()]
        return torch.cat([table[ids].float() for table in tables], dim=1)

    @normal_tensors
    def encode_prompts(
        self,
        prompts: Sequence[str],
        *,
        embeddings: Mapping[str, Tensor] | None = None,
        mappers: Mapping[str, WordMapper] | None = None,
    ) -> TextStates:
        known = {**self.embeddings, **self._checked(embeddings or {})}
        mapped = {**self.mappers, **self._checked_mappers(mappers or {})}
        sizes = {name: len(rows) for name, rows in known.items()} | dict.fromkeys(mapped, 1)
        spliced = splice(self.tokens, prompts, sizes)
        words = places(spliced, sizes)
        if any(len(words[name]) for name in mapped):
            return self._mapped_states(prompts, sizes, known, mapped, words)
        table = token_embedding_of(self.text_encoder)
        stand_ins = known | dict.fromkeys(mapped, table.weight[:1])  # in no prompt, but counted
        with self._visiting(self.text_encoder), scattered(table, spliced, stand_ins):
            out = self.text_encoder(input_ids=spliced.ids.to(self.device))
        return TextStates(out.last_hidden_state, words=words)

    def _mapped_states(
        self,
        prompts: Sequence[str],
        sizes: Mapping[str, int],
        known: Mapping[str, Tensor],
        mapped: Mapping[str, WordMapper],
        words: Mapping[str, Tensor],
    ) -> TextStates:
        """States that wait for their timesteps."""
        layers = self.num_cross_attentions

        def at(t_B: Tensor) -> LayerStates:
            asked = list(zip(prompts, t_B.tolist(), strict=True))
            # In training every row has a dropout of its own; in drawing, equal prompts are one.
            rows = asked if torch.is_grad_enabled() else list(dict.fromkeys(asked))
            t_U = torch.tensor([t for _, t in rows], device=self.device)
            spliced = splice(self.tokens, [prompt for prompt, _ in rows], sizes)
            with self._visiting(self.text_encoder):
                states = encode_layers(self.text_encoder, spliced, known, mapped, t_U, layers)
            if len(rows) == len(asked):
                return states
            index = torch.tensor([rows.index(one) for one in asked], device=self.device)
            return LayerStates(states.keys[:, index], states.values[:, index])

        width = token_embedding_of(self.text_encoder).weight.shape[1]
        nothing = torch.full((len(prompts), self.tokens.length, width), torch.nan, device=self.device)
        return TextStates(nothing, words=words, at=at)

    def _checked(self, embeddings: Mapping[str, Tensor]) -> dict[str, Tensor]:
        width = sum(self.text_widths.values())
        for name, rows_ND in embeddings.items():
            check_placeholder(self.tokens, name)
            if rows_ND.ndim != 2 or rows_ND.shape[1] != width or len(rows_ND) == 0:
                raise LikenessError(
                    f"The embedding {name} has the shape {tuple(rows_ND.shape)}",
                    expected=f"(vectors, {width}), as this model's text has",
                    fix="Use it with the model that it was trained on",
                )
        return dict(embeddings)

    def _checked_mappers(self, mappers: Mapping[str, WordMapper]) -> dict[str, WordMapper]:
        ours = (self.num_cross_attentions, int(token_embedding_of(self.text_encoder).weight.shape[1]))
        for name, mapper in mappers.items():
            check_placeholder(self.tokens, name)
            if (mapper.num_layers, mapper.width) != ours:
                raise LikenessError(
                    f"The word {name} was learned for {mapper.num_layers} cross-attentions of a text width "
                    f"of {mapper.width}",
                    expected=f"{ours[0]} of {ours[1]}, as this model has",
                    fix="Use it with the model that it was trained on",
                )
        return dict(mappers)

    # --- diffusion ------------------------------------------------------------------------------------

    @normal_tensors
    def encode_images(self, images_B3HW: Tensor) -> Latents:
        config = _config(self.vae)
        shift, scale = config.get("shift_factor") or 0.0, config.scaling_factor

        def encode(images: Tensor) -> Tensor:
            posterior = self.vae.encode(images).latent_dist  # type: ignore[operator]
            return torch.cat([(posterior.mean - shift) * scale, posterior.std * scale], dim=1)

        mean, std = self._through_vae(encode, images_B3HW, images_B3HW[0, 0].numel()).chunk(2, dim=1)
        return Latents(mean, std)

    @normal_tensors
    def decode(self, latents_BCHW: Tensor) -> Tensor:
        config = _config(self.vae)
        shift, scale = config.get("shift_factor") or 0.0, config.scaling_factor

        def decode(latents: Tensor) -> Tensor:
            return self.vae.decode(latents / scale + shift).sample  # type: ignore[no-any-return,operator]

        pixels = latents_BCHW[0, 0].numel() * self.latent_scale**2
        images = self._through_vae(decode, latents_BCHW, pixels)
        return (images / 2 + 0.5).clamp(0, 1)

    def _through_vae(self, work: Callable[[Tensor], Tensor], batch: Tensor, pixels: int) -> Tensor:
        rows = max(1, _VAE_PIXELS // pixels)
        with self._visiting(self.vae):
            batch = self._laid_out(batch.to(self.device, torch.float32))
            return torch.cat([work(batch[i : i + rows]) for i in range(0, len(batch), rows)])

    @normal_tensors
    def add_noise(self, latents_BCHW: Tensor, noise_BCHW: Tensor, t_B: Tensor) -> Tensor:
        return self.schedule.add_noise(latents_BCHW, noise_BCHW, t_B)

    @normal_tensors
    def target(self, latents_BCHW: Tensor, noise_BCHW: Tensor, t_B: Tensor) -> Tensor:
        return self.schedule.target(latents_BCHW, noise_BCHW, t_B)

    @normal_tensors
    def snr(self, t_B: Tensor) -> Tensor:
        return self.schedule.snr(t_B)

    @normal_tensors
    def predict(self, noisy_BCHW: Tensor, t_B: Tensor, text: TextStates) -> Tensor:
        weights = next(self.unet.parameters()).dtype
        noisy = self._laid_out(noisy_BCHW.to(self.device, weights))
        t_B = t_B.to(self.device)
        context = (text.context if text.at is None else packed(text.at(t_B))).to(self.device, weights)
        with ExitStack() as stack:
            if text.at is not None:
                stack.enter_context(routed(self.unet, text.context.shape[1]))
            if weights != self.dtype:  # a private copy's fp32 masters
                stack.enter_context(torch.autocast(self.device.type, self.dtype))
            if self.base.compile:  # compiled code must notice adapters that come and go
                stack.enter_context(torch._dynamo.config.patch(skip_nnmodule_hook_guards=False))
            added = self._added_conditions(noisy, text)
            out: Tensor = self.unet(noisy, t_B, context, added_cond_kwargs=added, return_dict=False)[0]
        return out.float()

    def _added_conditions(self, noisy_BCHW: Tensor, text: TextStates) -> dict[str, Tensor] | None:
        """What the UNet reads beside timestep and context: in SDXL alone something."""
        return None

    def timesteps(self, steps: int) -> list[int]:
        return self.schedule.timesteps(steps)

    @normal_tensors
    def clean(self, noisy_BCHW: Tensor, out_BCHW: Tensor, t_B: Tensor) -> Tensor:
        return self.schedule.estimates(noisy_BCHW.float(), out_BCHW.float(), t_B)[0]

    @normal_tensors
    def transition(
        self, noisy_BCHW: Tensor, out_BCHW: Tensor, t_B: Tensor, steps: int, *, eta: float
    ) -> tuple[Tensor, Tensor]:
        return self.schedule.transition(noisy_BCHW, out_BCHW, t_B, steps, eta=eta)

    def denoise(
        self,
        text: TextStates,
        negative: TextStates,
        *,
        seeds: Sequence[int],
        steps: int,
        guidance: float,
        eta: float = 0.0,
        size: tuple[int, int] | None = None,
    ) -> Iterator[Tensor]:
        shape = self._latent_shape(size)
        latents = self._noise(shape, seeds, "latents")
        for index, t in enumerate(self.schedule.timesteps(steps)):
            noise = self._noise(shape, seeds, "step", index) if eta > 0 else None
            latents = self._denoise_step(latents, t, text, negative, guidance, steps, eta, noise)
            yield latents

    def _latent_shape(self, size: tuple[int, int] | None) -> tuple[int, int, int]:
        height, width = size or (self.image_size, self.image_size)
        cell = self.latent_scale
        if height < cell or width < cell or height % cell or width % cell:
            raise LikenessError(
                f"A picture of {width}x{height} pixels was asked for",
                expected=f"a width and height that are multiples of {cell}",
            )
        return self.latent_channels, height // cell, width // cell

    @normal_tensors
    def _noise(self, shape: tuple[int, int, int], seeds: Sequence[int], *stream: int | str) -> Tensor:
        """One row per seed, drawn on the CPU: the same on every device and in every batch."""
        return torch.stack([normal(shape, seed, *stream) for seed in seeds]).to(self.device)

    @normal_tensors
    @torch.no_grad()
    def _denoise_step(
        self,
        latents: Tensor,
        t: int,
        text: TextStates,
        negative: TextStates,
        guidance: float,
        steps: int,
        eta: float,
        noise: Tensor | None,
    ) -> Tensor:
        """One guided DDIM step: ``out = out_neg + guidance * (out_text - out_neg)`` (arXiv:2207.12598)."""
        if guidance == 1:
            out = self.predict(latents, torch.full((len(latents),), t), text)
        else:
            t_2B = torch.full((2 * len(latents),), t)
            both = self.predict(latents.repeat(2, 1, 1, 1), t_2B, negative.joined(text))
            out_negative, out_text = both.chunk(2)
            out = out_negative + guidance * (out_text - out_negative)
        return self.schedule.ddim_step(latents, out, t, steps, eta=eta, noise_BCHW=noise)

    @normal_tensors
    @torch.no_grad()
    def sample(
        self,
        prompts: Sequence[str],
        *,
        seeds: Sequence[int],
        steps: int = 25,
        guidance: float = 5.0,
        negative: str = "",
        eta: float = 0.0,
        size: tuple[int, int] | None = None,
    ) -> Tensor:
        if len(prompts) != len(seeds) or not prompts:
            raise LikenessError(
                f"{len(prompts)} prompts came with {len(seeds)} seeds", expected="one seed for each prompt"
            )
        text, empty = self.encode_prompts(prompts), self.encode_prompts([negative])
        steps_taken = self.denoise(
            text, empty, seeds=seeds, steps=steps, guidance=guidance, eta=eta, size=size
        )
        latents = deque(steps_taken, maxlen=1).pop()
        return self.decode(latents).cpu()

    # --- trainable surfaces ---------------------------------------------------------------------------

    def attach_lora(self, spec: LoraSpec, *, seed: int = 0) -> HookLora:
        modules: dict[str, nn.Module] = {part: self.module(part) for part in self.parts}
        return HookLora(modules, spec, seed=seed, device=self.device)

    @normal_tensors
    def with_embeddings(self, embeddings: Mapping[str, Tensor]) -> SDBackbone:
        return replace(self, embeddings={**self.embeddings, **self._checked(embeddings)})

    def with_mappers(self, mappers: Mapping[str, WordMapper]) -> SDBackbone:
        return replace(self, mappers={**self.mappers, **self._checked_mappers(mappers)})

    def layered(self) -> AbstractContextManager[None]:
        return routed(self.unet, self.tokens.length)

    @normal_tensors
    def private_copy(self, *parts: Part) -> SDBackbone:
        """Adapters that are attached to this backbone do not come along."""
        copies = {part: without_hooks(copy.deepcopy(self.module(part))).float() for part in parts}
        for module in copies.values():
            module.requires_grad_(True)
        if self.base.compile and "unet" in copies:
            copies["unet"].compile()
        return replace(self, **copies)  # type: ignore[arg-type]

    @property
    def parts(self) -> tuple[Part, ...]:
        return ("unet", *self.text_encoders)

    def module(self, part: Part) -> nn.Module:
        return self.unet if part == "unet" else self.text_encoders[part]

    @contextmanager
    def patched(self, deltas: Mapping[str, Tensor], strength: float = 1.0) -> Iterator[SDBackbone]:
        """The original tensors are set aside and put back, not subtracted: not a bit changes."""
        originals: list[tuple[nn.Parameter, Tensor]] = []
        try:
            self._add_deltas(deltas, strength, originals)
            yield self
        finally:
            for parameter, original in originals:
                parameter.data = original

    @normal_tensors
    @torch.no_grad()
    def _add_deltas(
        self, deltas: Mapping[str, Tensor], strength: float, originals: list[tuple[nn.Parameter, Tensor]]
    ) -> None:
        """``originals`` fills as weights change, so that a failure half-way can be taken back."""
        chosen = [(self._parameter(key, delta), delta) for key, delta in deltas.items()]
        for parameter, delta in chosen:
            changed = parameter.float() + strength * delta.to(parameter.device, torch.float32)
            originals.append((parameter, parameter.data))
            parameter.data = changed.to(parameter.dtype)

    def _parameter(self, key: str, delta: Tensor) -> nn.Parameter:
        """The parameter that a delta's key names. Raises LikenessError when there is none of its shape."""
        part, _, name = key.partition(".")
        modules: dict[str, nn.Module] = {part: self.module(part) for part in self.parts}
        parameters = dict(modules[part].named_parameters()) if part in modules else {}
        found = parameters.get(name, parameters.get(f"text_model.{name}"))
        if found is None or found.shape != delta.shape:
            raise LikenessError(
                f"The weight change {key} {tuple(delta.shape)} does not fit this model",
                expected="changes that were trained on a model of the same kind",
            )
        return found

    # --- placement ------------------------------------------------------------------------------------

    @contextmanager
    def _visiting(self, module: nn.Module) -> Iterator[None]:
        """With ``offload``, bring ``module`` to the device for one piece of work.

        Where gradients are recorded it stays: backward still needs its weights there.
        """
        if self.base.offload:
            module.to(self.device)
        try:
            yield
        finally:
            if self.base.offload and not torch.is_grad_enabled():
                module.to("cpu")

    def _laid_out(self, images: Tensor) -> Tensor:
        return images.contiguous(memory_format=torch.channels_last) if self.base.channels_last else images


def _config(module: nn.Module) -> Any:
    return module.config


def places(spliced: Spliced, sizes: Mapping[str, int]) -> dict[str, Tensor]:
    """Row and position of every token of every word, (K, 2)."""
    owners = [name for name in spliced.names for _ in range(sizes[name])]
    found: dict[str, list[tuple[int, int]]] = {name: [] for name in sizes}
    for batch, position, row in zip(spliced.batch, spliced.position, spliced.row, strict=True):
        found[owners[row]].append((batch, position))
    return {name: torch.tensor(places, dtype=torch.long).reshape(-1, 2) for name, places in found.items()}


def token_embedding_of(text_encoder: nn.Module) -> nn.Embedding:
    inner: Any = getattr(text_encoder, "text_model", text_encoder)  # transformers < 5 has one level more
    found = inner.embeddings.token_embedding
    assert isinstance(found, nn.Embedding)
    return found
