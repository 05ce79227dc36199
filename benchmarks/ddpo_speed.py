"""One DDPO epoch on Toybox against ddpo-pytorch's loop: sampling, reward, updates.

Same model, prompts, reward, pictures, steps, batch, guidance, LoRA and optimizer; the two alternate within
one process, so that both meet the same machine. Theirs is transcribed in structure from
kvablack/ddpo-pytorch, scripts/train.py and its pipeline_with_logprob: every sampling batch encodes its
prompts, log-probabilities come out of the scheduler's step, pictures go to the reward as 8-bit arrays,
samples are regrouped, each sample's timesteps are shuffled, and every timestep of a batch is one forward and
backward. It also logs its images, which neither does here. The LoRA is peft's: its old attention processors
are gone from diffusers.
Measured twice: in fp32, where both mostly wait for the same matrix products, and with bf16 weights and an
fp32 LoRA, as its own configuration has mixed precision. Theirs has diffusers' default attention and memory
layout; ours has what Load Base Model offers. Also checked: on the same transitions both give the same
log-probabilities in fp32; in bf16 they differ by more than a clip of 1e-4. About 6 minutes on 2 cores.
"""
# Shapes: N pictures of an epoch, B of a batch, T denoising steps.

from __future__ import annotations

import copy
import statistics
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ..backbones import open_backbone
from ..backbones.base import BaseModel
from ..backbones.lora import without_hooks
from ..concepts.concept import Concept
from ..scoring.rewards import About, RewardSpec, checked_scores
from ..subjects import from_images
from ..subjects.prompt_pool import PoolPrompt, PromptPool
from ..trainers.align import Align, AlignConfig
from ..trainers.dreambooth import DreamBoothConfig, train_dreambooth
from ..trainers.events import Done, Step
from ..trainers.loop import Loop
from ..trainers.personalized import Personalized
from ..trainers.run import Run, Settings
from . import bar

POOL = PromptPool(activities=("playing with a ball", "jumping"))
SETTINGS: Mapping[str, Any] = {
    "images_per_epoch": 16,  # InstructBooth
    "batch_size": 8,  # InstructBooth
    "images_per_prompt": 4,
    "denoising_steps": 50,  # InstructBooth
    "guidance": 7.5,  # InstructBooth
    "rank": 4,
    "alpha": 4.0,
}
# Free of any effect on what is computed: how much of it one forward holds.
ROWS = {"fp32": 80, "bf16": 200}
BAR = 2.0
TOLERANCE = 1e-4


class Theirs:
    """ddpo-pytorch's train.py, one epoch at a time."""

    def __init__(self, backbone: Any, method: Align, config: AlignConfig) -> None:
        from peft import LoraConfig

        self.backbone, self.method, self.config = backbone, method, config
        self.unet = copy.deepcopy(backbone.unet).to(memory_format=torch.contiguous_format)
        self.unet.set_default_attn_processor()
        without_hooks(self.unet)
        self.unet.requires_grad_(False)
        targets = ["to_k", "to_q", "to_v", "to_out.0"]
        self.unet.add_adapter(
            LoraConfig(r=4, lora_alpha=4, init_lora_weights="gaussian", target_modules=targets)
        )
        self.trained = [p for p in self.unet.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self.trained, lr=config.learning_rate, betas=(0.9, config.adam_beta2), weight_decay=1e-2, eps=1e-8
        )
        self.seen: dict[str, deque[float]] = {}

    def epoch(self, number: int) -> None:
        config, total = self.config, self.config.denoising_steps
        prompts = [self.method.prompts[n] for n in self.method.drawn_prompts(number)]
        samples = [
            self.sample(prompts[i : i + config.batch_size]) for i in range(0, len(prompts), config.batch_size)
        ]
        merged = {key: torch.cat([sample[key] for sample in samples]) for key in samples[0]}
        merged["advantages"] = self.advantages(merged.pop("rewards"), prompts)
        order = torch.randperm(len(prompts))
        merged = {key: value[order] for key, value in merged.items()}
        shuffled = torch.stack([torch.randperm(total) for _ in prompts])
        for key in ("timesteps", "latents", "next_latents", "log_probs"):
            merged[key] = merged[key][torch.arange(len(prompts))[:, None], shuffled]
        for start in range(0, len(prompts), config.batch_size):
            rows = slice(start, start + config.batch_size)
            self.update({key: value[rows] for key, value in merged.items()})

    @torch.no_grad()
    def sample(self, prompts: Sequence[PoolPrompt]) -> dict[str, Tensor]:
        config, model = self.config, self.backbone
        texts = [prompt.text for prompt in prompts]
        embeds = model.encode_prompts(texts).context
        negative = model.encode_prompts([""] * len(texts)).context
        edge = model.image_size // model.latent_scale
        latents = torch.randn(len(texts), model.latent_channels, edge, edge, device=model.device)
        kept, log_probs = [latents], []
        grid = model.timesteps(config.denoising_steps)
        for t in grid:
            t_B = torch.full((len(texts),), t, device=model.device)
            out = self.guided(latents, t_B, torch.cat([negative, embeds]))
            latents, log_prob = self.step(out, latents, t_B)
            kept.append(latents)
            log_probs.append(log_prob)
        images = (model.decode(latents) * 255).round().to(torch.uint8)
        path = torch.stack(kept, dim=1)
        return {
            "embeds": embeds,
            "timesteps": torch.tensor(grid, device=model.device).repeat(len(texts), 1),
            "latents": path[:, :-1],
            "next_latents": path[:, 1:],
            "log_probs": torch.stack(log_probs, dim=1),
            "rewards": checked_scores(self.method.reward, images.float() / 255, texts),
        }

    def guided(self, latents: Tensor, t_B: Tensor, embeds_2B: Tensor) -> Tensor:
        weights = self.unet.dtype
        inputs, embeds_2B = torch.cat([latents] * 2).to(weights), embeds_2B.to(weights)
        both = self.unet(inputs, torch.cat([t_B] * 2), embeds_2B, return_dict=False)[0].float()
        without, with_text = both.chunk(2)
        out: Tensor = without + self.config.guidance * (with_text - without)
        return out

    def step(
        self, out: Tensor, latents: Tensor, t_B: Tensor, after: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """ddim_step_with_logprob: the drawn or given next latents, and their log-probability."""
        schedule, total, eta = self.backbone.schedule, self.config.denoising_steps, self.config.eta
        before = t_B - schedule.num_timesteps // total
        abar = schedule.abar[t_B.cpu()].to(latents.device).view(-1, 1, 1, 1)
        last = torch.full_like(t_B, schedule.final_abar, dtype=torch.float32).cpu()
        earlier = torch.where(before.cpu() >= 0, schedule.abar[before.cpu().clamp(min=0)], last)
        earlier = earlier.to(latents.device).view(-1, 1, 1, 1)
        clean = (latents - (1 - abar) ** 0.5 * out) / abar**0.5
        variance = (1 - earlier) / (1 - abar) * (1 - abar / earlier)
        std = eta * variance**0.5
        mean = earlier**0.5 * clean + (1 - earlier - std**2) ** 0.5 * out
        if after is None:
            after = mean + std * torch.randn_like(mean)
        half_log_tau = torch.log(torch.sqrt(2 * torch.as_tensor(torch.pi)))
        log_prob = -((after.detach() - mean) ** 2) / (2 * std**2) - torch.log(std) - half_log_tau
        return after, log_prob.mean(dim=(1, 2, 3))

    def advantages(self, rewards: Tensor, prompts: Sequence[PoolPrompt]) -> Tensor:
        texts = [prompt.text for prompt in prompts]
        advantages = torch.empty_like(rewards)
        for text in set(texts):
            rows = torch.tensor([own == text for own in texts])
            seen = self.seen.setdefault(text, deque(maxlen=self.config.buffer_size))
            seen.extend(rewards[rows].tolist())
            known = rewards if len(seen) < self.config.min_count else torch.tensor(list(seen))
            advantages[rows] = (rewards[rows] - known.mean()) / (known.std(correction=0) + 1e-6)
        return advantages

    def update(self, batch: dict[str, Tensor]) -> None:
        config = self.config
        empty = self.backbone.encode_prompts([""]).context.detach().expand_as(batch["embeds"])
        embeds = torch.cat([empty, batch["embeds"]])
        info: dict[str, list[Tensor]] = {"approx_kl": [], "clipfrac": [], "loss": []}
        for j in range(config.denoising_steps):
            loss, log_prob = self.loss(batch, j, embeds)
            difference = (log_prob - batch["log_probs"][:, j]).detach()
            info["approx_kl"].append(0.5 * (difference**2).mean())
            info["clipfrac"].append(((difference.exp() - 1).abs() > config.clip).float().mean())
            info["loss"].append(loss.detach())
            torch.autograd.backward(loss / config.denoising_steps)
        torch.nn.utils.clip_grad_norm_(self.trained, config.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        for values in info.values():  # for its log
            float(torch.stack(values).mean())

    def loss(self, batch: dict[str, Tensor], j: int, embeds: Tensor) -> tuple[Tensor, Tensor]:
        config = self.config
        out = self.guided(batch["latents"][:, j], batch["timesteps"][:, j], embeds)
        _, log_prob = self.step(
            out, batch["latents"][:, j], batch["timesteps"][:, j], batch["next_latents"][:, j]
        )
        limit = config.advantage_clip
        advantages = batch["advantages"].clamp(-limit, limit)
        ratio = (log_prob - batch["log_probs"][:, j]).exp()
        unclipped, clipped = -advantages * ratio, -advantages * ratio.clamp(1 - config.clip, 1 + config.clip)
        return torch.maximum(unclipped, clipped).mean(), log_prob


def personalized(base: BaseModel, scratch: Path) -> Concept:
    """A concept; how good it is does not matter here."""
    images_BHWC = torch.rand(3, 64, 64, 3, generator=torch.Generator().manual_seed(0))
    subject = from_images(images_BHWC, scratch / "photos", class_noun="fish", name="fish")
    config = DreamBoothConfig(steps=1, batch_size=1)
    done = [*train_dreambooth(base, subject, config, runs_root=scratch)][-1]
    assert isinstance(done, Done)
    return done.concept


def our_epochs(method: Align, config: AlignConfig, scratch: Path) -> Iterator[float]:
    """Seconds of each epoch of our loop, its log included."""
    settings = Settings(
        method="align", subject="fish", subject_hash="", base_hash="", dtype="fp32", config=config, seed=0
    )
    run = Run(scratch, settings)
    run.start({})
    loop = Loop(method, run, config, seed=0, judge=None)
    while True:
        started = time.perf_counter()
        for _ in range(config.updates_per_epoch):
            for _ in method.collect(loop.step):
                pass
            assert isinstance(loop.advance(), Step)
        yield time.perf_counter() - started


def same_numbers(method: Align, theirs: Theirs) -> float:
    """The largest difference of log-probabilities on our transitions, both LoRAs still without effect."""
    epoch = method.epoch
    assert epoch is not None
    texts = [method.prompts[n].text for n in epoch.prompts[:8]]
    model = method.backbone
    embeds = torch.cat([model.encode_prompts([""] * 8).context, model.encode_prompts(texts).context])
    worst = 0.0
    for j, t in enumerate(method.grid):
        t_B = torch.full((8,), t, device=model.device)
        with torch.no_grad():
            out = theirs.guided(epoch.latents[:8, j], t_B, embeds)
            _, log_prob = theirs.step(out, epoch.latents[:8, j], t_B, epoch.latents[:8, j + 1])
        worst = max(worst, float((log_prob - epoch.log_probs[:8, j]).abs().max()))
    return worst


def measure(quick: bool, dtype: Literal["fp32", "bf16"]) -> dict[str, Any]:
    """Median seconds of an epoch of both, and their ratio; the first of each does not count."""
    base = BaseModel(source="toybox", dtype=dtype, channels_last=True)
    counted = 1 if quick else 5
    smaller = {"denoising_steps": 10} if quick else {}
    settings = {**SETTINGS, **smaller}
    rows = min(ROWS[dtype], settings["batch_size"] * settings["denoising_steps"])
    config = AlignConfig(
        steps=10**6, checkpoint_every=10**6, rows_per_forward=rows, rollout_batch=16, **settings
    )
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        concept = personalized(base, scratch)
        backbone: Any = open_backbone(base)
        about = About(
            family="toybox", trigger=concept.trigger, class_noun="fish", device=str(backbone.device)
        )
        method = Align(
            backbone, Personalized(concepts=((concept, 0.0),)), config,
            reward=RewardSpec(name="toybox_preference"), pool=POOL, about=about, warden=None, seed=0,
        )  # fmt: skip
        try:
            for _ in method.prepare():
                pass
            theirs, ours = Theirs(backbone, method, config), our_epochs(method, config, scratch)
            for _ in method.collect(0):
                pass
            difference = same_numbers(method, theirs)
            ours_s, theirs_s = [], []
            for number in range(1 + counted):
                started = time.perf_counter()
                theirs.epoch(number)
                theirs_s.append(time.perf_counter() - started)
                ours_s.append(next(ours))
        finally:
            method.close()
    ours_median, theirs_median = statistics.median(ours_s[1:]), statistics.median(theirs_s[1:])
    return {
        "our epoch, s": ours_median,
        "their epoch, s": theirs_median,
        "times faster": theirs_median / ours_median,
        "epochs of each": counted,
        "largest difference of log-probabilities": difference,
        "pictures, batch, denoising steps": [
            config.images_per_epoch, config.batch_size, config.denoising_steps,
        ],
        "rows of a forward of ours": config.rows_per_forward,
        "device": str(backbone.device),
    }  # fmt: skip


def run(quick: bool) -> dict[str, Any]:
    numbers = {"fp32": measure(quick, "fp32"), "bf16": measure(quick, "bf16")}
    worst = numbers["fp32"]["largest difference of log-probabilities"]
    return {
        "numbers": numbers,
        "bars": [
            *(bar(f"times faster than ddpo-pytorch's, {dtype}", value=found["times faster"], op=">=", bar=BAR)
              for dtype, found in numbers.items()),
            bar("largest difference of log-probabilities, fp32", value=worst, op="<=", bar=TOLERANCE),
        ],
        "seeds": [0],
    }  # fmt: skip
