"""InstructBooth's second stage: a personalized model learns to do what prompts say (arXiv:2312.03011).

    max_theta  E_{p(c), p_theta(z_0 | c)} [ r(z_0, c) ]                                        (eq. 4)
    grad    =  E [ sum_t grad log p_theta(z_{t-1} | z_t, c) * r(z_0, c) ]                       (eq. 5)

Policy gradient over the denoising steps, as DDPO (Black et al. 2023) with its importance-sampled clip, or
with DPOK's penalty for leaving the personalized model (Fan et al. 2023). An epoch draws pictures, a reward
scores them, a few updates learn from them. A LoRA learns; the personalized model stays as it is.
"""
# Shapes: B transitions of a forward, N pictures of an epoch, T denoising steps, C H W of a latent.

from __future__ import annotations

import logging
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ..backbones.base import Backbone, BaseModel, LoraSpec
from ..concepts.concept import Artifact, Concept
from ..core.hashing import canonical
from ..core.randomness import generator, normal
from ..scoring.encoders import Encoders
from ..scoring.rewards import (
    About,
    CombinedSpec,
    Reward,
    RewardSpec,
    checked_scores,
    open_reward,
    reward_hash,
)
from ..subjects.prompt_pool import PromptPool
from ..subjects.subject import Subject
from . import policy_gradient as pg
from .data import pick
from .entry import learn
from .events import Event, Phase, Rollout
from .guard import Guarded, IdentityGuard, Warden
from .method import LoopConfig, require
from .objectives import LossTerms
from .personalized import LoraOnConcepts, Personalized, about_of, guided

log = logging.getLogger(__name__)

Penalty = Literal["none", "transition", "prediction"]

# What InstructBooth's text does not say, and what stands in for it.
LEFT_OPEN: Mapping[str, str] = {
    "steps": "number of epochs: 100, where DDPO's curves flatten; the guard may stop before",
    "rank": "rank and targets of the LoRA: 4 on attention's q, k, v and out, DDPO's",
    "eta": "DDPO's 1",
    "advantage": "DDPO's statistics per prompt: without them the easier prompts without identifier win",
    "advantage_clip": "DDPO's 5",
    "max_grad_norm": "DDPO's 1",
    "images_per_prompt": "16 images of 2 prompts: figure 8 trains one activity, with and without identifier",
    "kl_weight": "no penalty is mentioned",
    "timestep_fraction": "DDPO's 1: all timesteps",
}


@dataclass(frozen=True, kw_only=True)
class AlignConfig(LoopConfig):
    """Defaults are InstructBooth's, appendix B, or else DDPO's: see ``LEFT_OPEN``."""

    steps: int = 200  # updates. Left open: 100 epochs
    batch_size: int = 8  # pictures in one update: "randomly use 8 samples ... at each gradient step"
    learning_rate: float = 2e-5  # appendix B
    adam_beta2: float = 0.99  # appendix B
    weight_decay: float = 1e-2  # appendix B
    max_grad_norm: float = 1.0  # DDPO
    checkpoint_every: int = 20
    images_per_epoch: int = 16  # appendix B
    images_per_prompt: int = 8  # left open
    denoising_steps: int = 50  # appendix B
    guidance: float = 7.5  # appendix B; the same in rollouts and updates
    eta: float = 1.0  # DDPO; the noise of DDIM's steps
    surrogate: pg.Surrogate = "clipped"  # appendix B: importance sampling with a clip
    clip: float = 1e-4  # appendix B: of the ratio
    advantage: pg.Advantage = "per_prompt"  # DDPO
    advantage_clip: float = 5.0  # DDPO
    buffer_size: int = 32  # DDPO: rewards that are remembered of each prompt
    min_count: int = 16  # DDPO: with fewer, the whole batch is compared with
    timestep_fraction: float = 1.0  # DDPO: of each picture's steps, those that learn
    penalty: Penalty = "none"  # DPOK's KL to the personalized model: of the paper, or of its code
    kl_weight: float = 0.0  # DPOK's beta
    rank: int = 4  # DDPO
    alpha: float = 4.0  # equal to rank, as DDPO
    rows_per_forward: int = 8  # transitions in one forward: memory against speed, nothing else
    rollout_batch: int = 8  # pictures drawn at once
    accumulation: int = field(init=False, default=1)  # forwards per update: follows from the above

    def __post_init__(self) -> None:
        for name in ("images_per_epoch", "images_per_prompt", "denoising_steps", "rows_per_forward"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
        require(0 < self.timestep_fraction <= 1, "timestep_fraction", self.timestep_fraction, "in (0, 1]")
        require(self.eta > 0, "eta", self.eta, "more than 0: without noise there is no policy to learn")
        require(self.clip > 0, "clip", self.clip, "more than 0")
        require(self.guidance >= 1, "guidance", self.guidance, "1 or more")
        require(self.rollout_batch >= 1, "rollout_batch", self.rollout_batch, "1 or more")
        require(1 <= self.rank <= 256, "rank", self.rank, "between 1 and 256")
        self._check_division()
        choices = {"surrogate": ("clipped", "score_function", "clamped"), "penalty": PENALTIES,
                   "advantage": ("per_prompt", "group", "batch")}  # fmt: skip
        for name, known in choices.items():
            require(getattr(self, name) in known, name, getattr(self, name), " or ".join(known))
        require(
            (self.penalty == "none") == (self.kl_weight == 0),
            "kl_weight", self.kl_weight, "above 0 with a penalty, 0 without",
        )  # fmt: skip
        object.__setattr__(
            self, "accumulation", self.batch_size * self.trained_steps // self.rows_per_forward
        )
        super().__post_init__()

    def _check_division(self) -> None:
        """Means over unequal parts would weigh pictures differently."""
        wholes = (
            ("images_per_epoch", "batch_size", self.images_per_epoch),
            ("images_per_epoch", "images_per_prompt", self.images_per_epoch),
            ("batch_size times its trained steps", "rows_per_forward", self.batch_size * self.trained_steps),
        )
        for whole, part, value in wholes:
            divisor = getattr(self, part)
            require(
                divisor >= 1 and value % divisor == 0,
                part,
                divisor,
                f"a divisor of {whole}, which is {value}",
            )

    @property
    def trained_steps(self) -> int:
        """Denoising steps of each picture that learn."""
        return max(1, int(self.denoising_steps * self.timestep_fraction))

    @property
    def rows_per_batch(self) -> int:
        return self.rows_per_forward

    @property
    def updates_per_epoch(self) -> int:
        return self.images_per_epoch // self.batch_size

    @classmethod
    def paper(cls, **changes: Any) -> AlignConfig:
        """InstructBooth's second stage."""
        return cls(**changes)

    @classmethod
    def dpok(cls, **changes: Any) -> AlignConfig:
        """DPOK as its code runs for one prompt (google-research/dpok): 10 and 0.01, so 1 and 0.001."""
        values = {"surrogate": "clamped", "penalty": "prediction", "kl_weight": 1e-3, "learning_rate": 1e-5,
                  "adam_beta2": 0.999, "weight_decay": 0.0, "max_grad_norm": 0.1}  # fmt: skip
        return cls(**{**values, **changes})

    @classmethod
    def practical(cls, family: str = "toybox", **changes: Any) -> AlignConfig:
        """Quick and strong for a family. For SD: the paper's values at less memory."""
        return cls(**{**PRACTICAL.get(family, PRACTICAL["sd1"]), **changes})


PENALTIES = ("none", "transition", "prediction")
PRACTICAL: Mapping[str, Mapping[str, Any]] = {
    # A small model moves little at 2e-5: fewer steps of a higher rate; not tuned yet
    "toybox": {
        "steps": 60,
        "learning_rate": 1e-3,
        "images_per_epoch": 32,
        "batch_size": 16,
        "denoising_steps": 20,
        "guidance": 5.0,
        "rank": 8,
        "alpha": 8.0,
        "rows_per_forward": 16,
        "rollout_batch": 32,
    },
    "sd1": {"learning_rate": 1e-4, "rows_per_forward": 2, "rollout_batch": 4},
}


@dataclass(frozen=True)
class Epoch:
    """A rollout: N pictures' ways through the denoising, and what they were worth. On the training device.

    ``latents`` (N, T + 1, C, H, W), ``log_probs`` (N, T) of the policy that drew them, ``advantages`` (N,).
    """

    number: int
    latents: Tensor
    log_probs: Tensor
    advantages: Tensor
    prompts: tuple[int, ...]  # of each picture, its number among the pool's
    worth: Mapping[str, float]  # mean rewards, for the curves


@dataclass(frozen=True)
class Transitions:
    """One forward's rows: which pictures of the epoch, and which denoising step of each."""

    pictures: list[int]
    steps: list[int]


class Align(LoraOnConcepts):
    """The method for ``loop.train``; an ``OnPolicy``."""

    def __init__(
        self,
        backbone: Backbone,
        personalized: Personalized,
        config: AlignConfig,
        *,
        reward: RewardSpec | CombinedSpec | None,  # None: another process collects
        pool: PromptPool,
        about: About,
        warden: Warden | None,
        seed: int,
    ) -> None:
        super().__init__(backbone, personalized, pool, about.class_noun)
        self.config, self.spec, self.about, self.warden, self.seed = config, reward, about, warden, seed
        self.grid = backbone.timesteps(config.denoising_steps)
        self.statistics = pg.PromptStatistics(config.buffer_size, config.min_count)
        self.epoch: Epoch | None = None
        if config.advantage == "group" and config.images_per_prompt == 1:
            log.warning("Groups of one picture have no spread: advantages are over the whole epoch instead")

    def prepare(self) -> Iterator[Phase]:
        if self.spec is not None:
            yield from self.open_rewards(self.spec)
        yield from self.put_on(LoraSpec(rank=self.config.rank, alpha=self.config.alpha), self.seed)

    def open_rewards(self, spec: RewardSpec | CombinedSpec) -> Iterator[Phase]:
        yield Phase("loading reward", 0, 1)
        shared = self.warden.trained if self.warden is not None else None
        self.reward: Reward = shared or open_reward(spec, self.about)
        self.identity: Reward | None = None
        if self.warden is not None and self.warden.guard.act == "weigh":
            self.identity = open_reward(RewardSpec(name="identity"), self.about)
        yield Phase("loading reward", 1, 1)

    # --- an epoch's pictures ----------------------------------------------------------------------
    def collect(self, step: int) -> Iterator[Event]:
        number = step // self.config.updates_per_epoch
        if self.epoch is not None and self.epoch.number == number:
            return
        prompts = self.drawn_prompts(number)
        latents, log_probs = [], []
        for start in range(0, len(prompts), self.config.rollout_batch):
            rows = range(start, min(start + self.config.rollout_batch, len(prompts)))
            drawn = yield from self.roll_out(number, rows, prompts)
            latents.append(drawn[0])
            log_probs.append(drawn[1])
        path_NTCHW = torch.cat(latents)
        images_N3HW = yield from self.decoded(path_NTCHW[:, -1])
        rewards_N = self.scored(images_N3HW, prompts)
        advantages_N = self.advantages(rewards_N, images_N3HW, prompts)
        worth = self.worth(rewards_N, prompts)
        self.epoch = Epoch(
            number, path_NTCHW, torch.cat(log_probs), advantages_N.to(path_NTCHW.device), prompts, worth
        )
        yield Rollout(
            step, number, worth["reward"],
            worth.get("reward with identifier"), worth.get("reward without identifier"),
            float(rewards_N.std(correction=0)),
        )  # fmt: skip

    def drawn_prompts(self, number: int) -> tuple[int, ...]:
        """Of each picture of an epoch: the pool's walk, ``images_per_prompt`` pictures for each prompt."""
        each = self.config.images_per_prompt
        groups = self.config.images_per_epoch // each
        drawn = self.pool.drawn(groups, number * groups, seed=self.seed)
        return tuple(self.number_of[key] for key in drawn for _ in range(each))

    def roll_out(
        self, number: int, rows: range, prompts: Sequence[int]
    ) -> Generator[Phase, None, tuple[Tensor, Tensor]]:
        """Draw some of an epoch's pictures: their latents (B, T + 1, C, H, W) and log-probs (B, T).

        A picture's noise is a function of the seed, the epoch and its number.
        """
        model, config, total = self.backbone, self.config, len(self.grid)
        batches = -(-len(prompts) // config.rollout_batch)
        done = rows.start // config.rollout_batch * total
        edge = model.image_size // model.latent_scale
        shape = (model.latent_channels, edge, edge)
        text = pick(self.texts, [prompts[row] for row in rows])
        x_BCHW = self.noise(shape, number, rows, "start")
        path, log_probs = [x_BCHW], []
        for n, t in enumerate(self.grid):
            with torch.no_grad():
                t_B = torch.full((len(rows),), t, device=x_BCHW.device)
                out = guided(model, x_BCHW, t_B, text, self.negative, config.guidance)
                mean, std_B = model.transition(x_BCHW, out, t_B, total, eta=config.eta)
                noise = self.noise(shape, number, rows, "step", n)
                x_BCHW = mean + std_B.view(-1, 1, 1, 1) * noise
                log_probs.append(pg.log_prob(x_BCHW, mean, std_B))
            path.append(x_BCHW)
            yield Phase("rollout", done + n + 1, batches * total)
        return torch.stack(path, dim=1), torch.stack(log_probs, dim=1)

    def noise(self, shape: tuple[int, ...], epoch: int, rows: range, *stream: int | str) -> Tensor:
        drawn = [normal(shape, self.seed, "rollout", epoch, row, *stream) for row in rows]
        return torch.stack(drawn).to(self.backbone.device)

    def decoded(self, latents_NCHW: Tensor) -> Generator[Phase, None, Tensor]:
        """Pictures in [0, 1], (N, 3, H, W), on the CPU."""
        images, size = [], self.config.rollout_batch
        for start in range(0, len(latents_NCHW), size):
            with torch.no_grad():
                images.append(self.backbone.decode(latents_NCHW[start : start + size]).cpu())
            yield Phase("decoding", min(start + size, len(latents_NCHW)), len(latents_NCHW))
        return torch.cat(images)

    # --- what they were worth ---------------------------------------------------------------------
    def scored(self, images_N3HW: Tensor, prompts: Sequence[int]) -> Tensor:
        rewards_N = checked_scores(self.reward, images_N3HW, [self.prompts[n].text for n in prompts])
        if float(rewards_N.max() - rewards_N.min()) == 0:
            log.warning(
                "The reward %s is %g for every picture of this epoch: nothing can be learned from it",
                self.reward.label, float(rewards_N[0]),
            )  # fmt: skip
        return rewards_N

    def advantages(self, rewards_N: Tensor, images_N3HW: Tensor, prompts: Sequence[int]) -> Tensor:
        """Standardised as configured and clipped; where the guard weighs, mixed with identity's."""
        own_N = self.standardised(rewards_N, prompts)
        share = self.warden.pressure() if self.warden is not None else 0.0
        if share > 0 and self.identity is not None:
            texts = [self.prompts[n].text for n in prompts]
            likeness_N = checked_scores(self.identity, images_N3HW, texts)
            own_N = (1 - share) * own_N + share * pg.group_advantage(likeness_N, prompts)
        limit = self.config.advantage_clip
        return own_N.clamp(-limit, limit)

    def standardised(self, rewards_N: Tensor, prompts: Sequence[int]) -> Tensor:
        if self.config.advantage == "per_prompt":
            return self.statistics.advantage(rewards_N, [self.prompts[n].text for n in prompts])
        if self.config.advantage == "group":
            return pg.group_advantage(rewards_N, prompts)
        return pg.standardised(rewards_N)

    def worth(self, rewards_N: Tensor, prompts: Sequence[int]) -> dict[str, float]:
        named = torch.tensor([self.prompts[n].identified for n in prompts])
        kinds = {
            "reward": rewards_N,
            "reward with identifier": rewards_N[named],
            "reward without identifier": rewards_N[~named],
        }
        return {name: float(own.mean()) for name, own in kinds.items() if len(own)}

    # --- every update -----------------------------------------------------------------------------
    def batch(self, index: int) -> Transitions:
        """Forward ``index`` of the run: its share of the update's (picture, step) pairs.

        Pictures are shuffled once an epoch, and every picture's steps by themselves, as DDPO does.
        """
        config = self.config
        update, part = divmod(index, config.accumulation)
        epoch, turn = divmod(update, config.updates_per_epoch)
        order = _permutation(config.images_per_epoch, self.seed, "pictures", epoch)
        chosen = order[turn * config.batch_size : (turn + 1) * config.batch_size]
        steps = [_permutation(len(self.grid), self.seed, "steps", epoch, row) for row in chosen]
        first = part * config.rows_per_forward
        pairs = [divmod(n, config.batch_size) for n in range(first, first + config.rows_per_forward)]
        return Transitions([chosen[b] for _, b in pairs], [steps[b][j] for j, b in pairs])

    def part(self, batch: Transitions, rows: slice) -> Transitions:
        return Transitions(batch.pictures[rows], batch.steps[rows])

    def loss(self, batch: Transitions) -> LossTerms:
        assert self.epoch is not None, "collect() comes before the updates"
        epoch, model, config = self.epoch, self.backbone, self.config
        device = epoch.latents.device
        rows, steps = (torch.tensor(which, device=device) for which in (batch.pictures, batch.steps))
        x_BCHW, next_BCHW = epoch.latents[rows, steps], epoch.latents[rows, steps + 1]
        t_B = torch.tensor([self.grid[n] for n in batch.steps], device=device)
        text = pick(self.texts, [epoch.prompts[row] for row in batch.pictures])
        out = guided(model, x_BCHW, t_B, text, self.negative, config.guidance)
        mean, std_B = model.transition(x_BCHW, out, t_B, len(self.grid), eta=config.eta)
        log_prob_B, old_B = pg.log_prob(next_BCHW, mean, std_B), epoch.log_probs[rows, steps]
        policy = pg.surrogate_loss(
            config.surrogate, log_prob_B, old_B, epoch.advantages[rows], config.clip
        ).mean()
        terms = {"policy": policy, **_measured(log_prob_B.detach(), old_B, config.clip)}
        total = policy
        if config.penalty != "none":
            terms["kl"] = self.penalty(out, mean, std_B, x_BCHW, t_B, text)
            total = policy + config.kl_weight * terms["kl"]
        return LossTerms(total, terms | {name: torch.tensor(v) for name, v in epoch.worth.items()})

    def penalty(
        self, out: Tensor, mean: Tensor, std_B: Tensor, x_BCHW: Tensor, t_B: Tensor, text: Any
    ) -> Tensor:
        """How far the policy is from the personalized model, at the same states."""
        assert self.lora is not None
        config = self.config
        with torch.no_grad():
            self.lora.set_strength(0.0)
            try:
                reference = guided(self.backbone, x_BCHW, t_B, text, self.negative, config.guidance)
            finally:
                self.lora.set_strength(1.0)
            there, _ = self.backbone.transition(x_BCHW, reference, t_B, len(self.grid), eta=config.eta)
        if config.penalty == "prediction":
            return pg.prediction_kl(out, reference).mean()
        return pg.transition_kl(mean, there, std_B).mean()

    # --- state and result -------------------------------------------------------------------------
    def state(self, step: int) -> dict[str, Tensor]:
        """The prompts' statistics, and the epoch while updates are still to learn from it."""
        numbers = {prompt.text: n for n, prompt in enumerate(self.prompts)}
        tensors = {f"seen.{numbers[text]}": seen for text, seen in self.statistics.state().items()}
        epoch = self.epoch
        if epoch is None or epoch.number != step // self.config.updates_per_epoch:
            return tensors
        return tensors | {
            "epoch.number": torch.tensor(epoch.number),
            "epoch.latents": epoch.latents,
            "epoch.log_probs": epoch.log_probs,
            "epoch.advantages": epoch.advantages,
            **{f"worth.{name}": torch.tensor(v, dtype=torch.float64) for name, v in epoch.worth.items()},
        }

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        self.statistics.load(
            {
                self.prompts[int(name.removeprefix("seen."))].text: seen
                for name, seen in tensors.items()
                if name.startswith("seen.")
            }
        )
        if "epoch.number" not in tensors:
            self.epoch = None
            return
        number, device = int(tensors["epoch.number"]), self.backbone.device
        latents, log_probs, advantages = (
            tensors[f"epoch.{name}"].to(device) for name in ("latents", "log_probs", "advantages")
        )
        names = ("reward", "reward with identifier", "reward without identifier")
        worth = {name: float(tensors[f"worth.{name}"]) for name in names if f"worth.{name}" in tensors}
        self.epoch = Epoch(number, latents, log_probs, advantages, self.drawn_prompts(number), worth)

    def export(self) -> Artifact:
        return self.artifact(self.config.rank, self.config.alpha)


def _measured(log_prob_B: Tensor, old_B: Tensor, clip: float) -> dict[str, Tensor]:
    """For the curves: how far the policy moved since the rollout, and how many ratios left the bounds."""
    moved_B = log_prob_B - old_B
    return {
        "approx_kl": 0.5 * moved_B.square().mean(),
        "clip_fraction": ((moved_B.exp() - 1).abs() > clip).float().mean(),
    }


def _permutation(count: int, seed: int, *stream: int | str) -> list[int]:
    order: list[int] = torch.randperm(count, generator=generator(seed, "order", *stream)).tolist()
    return order


def train_align(
    base: BaseModel,
    subject: Subject,
    config: AlignConfig,
    *,
    concepts: Sequence[tuple[Concept, float]],
    pool: PromptPool,
    runs_root: Path,
    reward: RewardSpec | CombinedSpec | None = None,
    seed: int = 0,
    guard: IdentityGuard | None = None,
    encoders: Encoders | None = None,
    roots: Sequence[Path] = (),
) -> Generator[Event, None, None]:
    """Align a personalized model. Ends with ``Done``, whose concept is a LoRA to apply after ``concepts``.

    ``reward`` None is "auto". ``encoders`` judge identity and CLIP-T; None opens those of the model's family.
    ``roots`` are folders where reward models are looked for.
    """
    spec, personalized = reward or RewardSpec(), Personalized(concepts=tuple(concepts))
    about = about_of(base, subject, personalized, encoders, roots)
    warden = Warden() if guard is not None else None
    guarded = None
    if guard is not None and warden is not None:
        guarded = Guarded(guard=guard, reward=spec, pool=pool, about=about, warden=warden)

    told: dict[str, Any] = {"personalized": personalized, "config": config, "pool": pool, "seed": seed}
    beside = {"reward": spec, "reward_weights": reward_hash(spec, about), "pool": pool,
              "concepts": personalized.content}  # fmt: skip
    return learn(
        "align", partial(Align, **told, reward=spec, about=about, warden=warden), base, subject, config,
        runs_root=Path(runs_root), seed=seed, monitor=guarded, encoders=encoders, beside=canonical(beside),
        follower=partial(Align, **told, reward=None, about=replace(about, encoders=None), warden=None),
    )  # fmt: skip
