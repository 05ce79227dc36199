"""The one loop that trains every part: AdamW, warm-up and decay, EMA, atomic checkpoints, exact resume.

A part is built anew from its seed or read from its checkpoint; the randomness of a step is a function of
(seed, step) alone, so that stopping anywhere and going on gives the same weights, bit for bit.
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How long and how fast. ``lr`` rises over ``warmup`` steps and falls to a hundredth over the last
    ``decay`` share of all ``steps``, along a cosine."""

    steps: int
    batch: int
    lr: float
    warmup: int = 100
    decay: float = 1.0
    weight_decay: float = 0.01
    ema: float = 0.998
    clip: float = 1.0
    save_every: int = 250
    log_every: int = 25
    seed: int = 0
    muon_lr: float = 0.0  # 0: AdamW for every weight; else Muon at this rate for inner matrices and kernels

    def lr_at(self, step: int, lr: float | None = None) -> float:
        """The learning rate of a step, 0-based; of ``lr`` rather than ``self.lr`` if given."""
        rise = min(1.0, (step + 1) / max(self.warmup, 1))
        start = self.steps * (1 - self.decay)
        fall = min(max((step - start) / max(self.steps - start, 1), 0.0), 1.0)
        return (self.lr if lr is None else lr) * rise * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * fall)))


@dataclass(frozen=True)
class Progress:
    """What the trainer tells as it goes: ``values`` holds the loss and its terms, averaged since the last."""

    part: str
    step: int
    steps: int
    values: dict[str, float]
    seconds_per_step: float


class Part(Protocol):
    """One model to train. ``loss`` must draw its randomness from torch's global generator or (seed, step)."""

    name: str
    schedule: Schedule
    exported: str  # the file of its weights in the folder of all weights

    def build(self) -> nn.Module: ...

    def loss(self, model: nn.Module, step: int) -> dict[str, Tensor]: ...

    def export(self, model: nn.Module, weights_dir: Path) -> None: ...


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def short_floats() -> torch.autocast:
    """Matrix products in bfloat16 where the machine multiplies it natively (on a CPU: AVX-512 BF16): half the
    time of a step, and diffusion's own noise hides the rounding."""
    if device().type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = torch.cpu._is_avx512_bf16_supported()
    return torch.autocast(device().type, torch.bfloat16, enabled=native)


def num_workers() -> int:
    """Processes that train one part together, each on its share of the batch (torch.distributed)."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def checkpoint_path(state_dir: Path, name: str) -> Path:
    return state_dir / f"{name}.pt"


def save_atomically(state: object, path: Path) -> None:
    """Write beside and rename: a half-written file never has the final name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    torch.save(state, part)
    part.replace(path)


def is_inner(name: str, parameter: nn.Parameter) -> bool:
    """Matrices and kernels between the first and the last layer: what Muon is for."""
    ends = ("embed", "conv_in", "conv_out", "heads", "projection")
    return (
        parameter.ndim > 1
        and min(parameter.shape[0], parameter[0].numel()) >= 16
        and not any(e in name for e in ends)
    )


class Muon:
    """Momentum whose update is orthogonalised (Jordan et al. 2024, kellerjordan.github.io/posts/muon): fewer
    steps than AdamW for the same loss, which is what counts on a CPU."""

    def __init__(self, parameters: list[nn.Parameter], momentum: float = 0.95) -> None:
        self.parameters, self.momentum = parameters, momentum
        self.momenta = [torch.zeros_like(p) for p in parameters]

    @torch.no_grad()
    def step(self, lr: float, weight_decay: float) -> None:
        updates = [torch.zeros_like(p) for p in self.parameters]
        for i in self._mine():
            grad, momentum = self.parameters[i].grad, self.momenta[i]
            ahead = grad.lerp(momentum.lerp_(grad, 1 - self.momentum), self.momentum).flatten(1)
            scale = 0.2 * max(ahead.shape) ** 0.5  # the size of an AdamW update
            updates[i] = orthogonal(ahead).view_as(updates[i]) * scale
        share(updates)
        for parameter, update in zip(self.parameters, updates, strict=True):
            parameter.mul_(1 - lr * weight_decay).sub_(update, alpha=lr)

    def _mine(self) -> list[int]:
        """The weights that this worker sees to; the largest are dealt out first."""
        order = sorted(range(len(self.parameters)), key=lambda i: -self.parameters[i].numel())
        return [i for place, i in enumerate(order) if place % num_workers() == rank()]

    def gather(self) -> None:
        """Let every worker know all momenta, before a checkpoint."""
        mine = set(self._mine())
        for i, momentum in enumerate(self.momenta):
            if i not in mine:
                momentum.zero_()
        share(self.momenta)


def share(tensors: list[Tensor]) -> None:
    """Replace the tensors by their sums over the workers."""
    if num_workers() > 1 and tensors:
        flat = nn.utils.parameters_to_vector(tensors)
        dist.all_reduce(flat)
        for tensor, total in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
            tensor.copy_(total.view_as(tensor))


def orthogonal(g: Tensor, steps: int = 5) -> Tensor:
    """The nearest semi-orthogonal matrix, roughly, by Newton-Schulz iterations."""
    tall = g.shape[0] > g.shape[1]
    x = g.T if tall else g
    x = x / (x.norm() + 1e-7)
    with short_floats():
        for _ in range(steps):
            gram = x @ x.T
            x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.T if tall else x


@torch.no_grad()
def begin_from(model: nn.Module, file: Path) -> int:
    """Copy the tensors of a safetensors file whose name and shape a model shares; how many there were.

    The names of a part that wraps its model end as the file's do: ``clip.vision_model.x`` takes
    ``vision_model.x``, ``clip.encoder.x`` takes ``text_model.encoder.x``.
    """
    from safetensors.torch import load_file

    tensors = {_core_name(name): tensor for name, tensor in load_file(file).items()}
    copied = 0
    for name, own in model.state_dict().items():
        found = tensors.get(_core_name(name))
        if found is not None and found.shape == own.shape:
            own.copy_(found)
            copied += 1
    return copied


def _core_name(name: str) -> str:
    return name.removeprefix("clip.").removeprefix("text_model.")


class Trainer:
    """A part with its optimizer and average; ``advance`` is one step."""

    def __init__(self, part: Part, state_dir: Path, start_from: Path | None = None) -> None:
        self.part, self.path, self.step = part, checkpoint_path(state_dir, part.name), 0
        with _one_by_one(), _seeded(part.schedule.seed, -1):
            self.model = part.build().to(device())
        if start_from is not None and not self.path.exists():
            copied = begin_from(self.model, start_from / part.exported)
            log.info("%s: %d tensors from %s", part.name, copied, start_from)
        self.trained = {k: p for k, p in self.model.named_parameters() if p.requires_grad}
        self.average = {k: p.detach().clone() for k, p in self.trained.items()}
        inner = {k for k, p in self.trained.items() if part.schedule.muon_lr and is_inner(k, p)}
        self.muon = Muon([p for k, p in self.trained.items() if k in inner])
        self.optimizer = torch.optim.AdamW(
            self._groups(inner), lr=part.schedule.lr, betas=(0.9, 0.99), foreach=True
        )
        if self.path.exists():
            self._restore(torch.load(self.path, map_location=device(), weights_only=True))

    def _groups(self, inner: set[str]) -> list[dict[str, object]]:
        """AdamW's: matrices decay; vectors and embeddings do not (unseen words keep their start)."""
        rest = {k: p for k, p in self.trained.items() if k not in inner}
        decays = {k: p.ndim > 1 and "embed" not in k for k, p in rest.items()}
        decay = self.part.schedule.weight_decay
        return [
            {"params": [p for k, p in rest.items() if decays[k]], "weight_decay": decay},
            {"params": [p for k, p in rest.items() if not decays[k]], "weight_decay": 0.0},
        ]

    def advance(self) -> dict[str, float]:
        """One step; the terms of its loss as numbers."""
        schedule = self.part.schedule
        for group in self.optimizer.param_groups:
            group["lr"] = schedule.lr_at(self.step)
        mine = self.step * num_workers() + rank()
        with _seeded(schedule.seed, mine):
            terms = self.part.loss(self.model, mine)
        self.model.zero_grad(set_to_none=True)  # all of them: Muon's weights are not the optimizer's
        terms["loss"].backward()
        self._share_gradients()
        nn.utils.clip_grad_norm_(list(self.trained.values()), schedule.clip)
        self.optimizer.step()
        self.muon.step(schedule.lr_at(self.step, schedule.muon_lr), schedule.weight_decay)
        self.step += 1
        self._follow()
        return {key: float(value.detach()) for key, value in terms.items()}

    def _share_gradients(self) -> None:
        """The mean of all workers' gradients. Two processes of one thread each share a busy CPU better than
        one of two threads, which waits for the slower at every operation."""
        grads = [p.grad for p in self.trained.values() if p.grad is not None]
        share(grads)
        if num_workers() > 1:
            torch._foreach_div_(grads, num_workers())

    def _follow(self) -> None:
        keep = min(self.part.schedule.ema, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(
            list(self.average.values()), [p.detach() for p in self.trained.values()], 1 - keep
        )

    def save(self) -> None:
        self.muon.gather()
        if rank():
            return
        state = {
            "step": self.step,
            "model": self.model.state_dict(),
            "average": self.average,
            "optimizer": self.optimizer.state_dict(),
            "muon": self.muon.momenta,
        }
        save_atomically(state, self.path)

    def _restore(self, state: dict[str, object]) -> None:
        self.step = state["step"]  # type: ignore[assignment]
        self.model.load_state_dict(state["model"])  # type: ignore[arg-type]
        self.optimizer.load_state_dict(state["optimizer"])  # type: ignore[arg-type]
        for mine, saved in zip(self.muon.momenta, state.get("muon", []), strict=True):  # type: ignore[attr-defined]
            mine.copy_(saved)
        for key, value in state["average"].items():  # type: ignore[attr-defined]
            self.average[key].copy_(value)

    def averaged(self) -> nn.Module:
        """The model with its averaged weights, in eval mode; ``restore_live`` undoes it."""
        self._live = {k: p.detach().clone() for k, p in self.trained.items()}
        for key, parameter in self.trained.items():
            parameter.data.copy_(self.average[key])
        return self.model.eval()

    def restore_live(self) -> None:
        for key, parameter in self.trained.items():
            parameter.data.copy_(self._live[key])
        self.model.train()


def run(part: Part, state_dir: Path, weights_dir: Path, start_from: Path | None = None) -> Iterator[Progress]:
    """Train a part from where it stands to its last step and export its averaged weights.

    A part that has no checkpoint begins with the weights in the folder ``start_from``, as far as they fit.
    Yields progress every ``log_every`` steps; stopping the iteration loses at most ``save_every`` steps.
    """
    trainer, schedule = Trainer(part, state_dir, start_from), part.schedule
    trainer.model.train()
    while trainer.step < schedule.steps:
        start, begun, sums = trainer.step, time.monotonic(), dict[str, float]()
        for _ in range(min(schedule.log_every, schedule.steps - trainer.step)):
            for key, value in trainer.advance().items():
                sums[key] = sums.get(key, 0.0) + value
            if trainer.step % schedule.save_every == 0:
                trainer.save()
        count = trainer.step - start
        yield Progress(
            part.name,
            trainer.step,
            schedule.steps,
            {k: v / count for k, v in sums.items()},
            (time.monotonic() - begun) / count,
        )
    trainer.save()
    if rank():
        return
    part.export(trainer.averaged(), weights_dir)
    trainer.restore_live()


@contextmanager
def _one_by_one() -> Iterator[None]:
    """Let the first worker fill the caches that the others then find."""
    if rank():
        dist.barrier()
    yield
    if num_workers() > 1 and not rank():
        dist.barrier()


class _seeded:  # noqa: N801 - reads as a verb: with _seeded(seed, step)
    """Torch's global randomness as a function of (seed, step), given back afterwards."""

    def __init__(self, seed: int, step: int) -> None:
        self.seed = (seed * 1_000_003 + step + 1) & 0x7FFFFFFF

    def __enter__(self) -> None:
        self.before = torch.get_rng_state()
        torch.manual_seed(self.seed)

    def __exit__(self, *_: object) -> None:
        torch.set_rng_state(self.before)


Listener = Callable[[Progress], None]
