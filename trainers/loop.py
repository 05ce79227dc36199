"""The one training loop: optimizer, schedule, clipping, checkpoints, exact resume, samples, held-out scores.

It yields events and calls nobody back. A consumer that stops iterating interrupts it: the state is saved and
everything borrowed is given back. All that happens at a step is a function of (settings, seed, step), so a
resumed run repeats an undisturbed one bit for bit.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from ..core.checkpoint import (
    checkpoint_path,
    load_checkpoint,
    newest_checkpoint,
    prune_checkpoints,
    save_checkpoint,
)
from ..core.errors import LikenessError
from ..core.randomness import isolated_rng
from .accumulate import gradient, out_of_memory, require_finite
from .drawing import draw, picture_seed, save_png
from .events import Checkpoint, Event, Phase, Sample, Step
from .method import SCHEDULES, LoopConfig, Method, OnPolicy
from .monitor import Watch
from .processes import Crew
from .run import Run

log = logging.getLogger(__name__)

SAMPLE_PROMPTS = (  # settings that photos of a subject rarely show
    "a photo of {}",
    "a photo of {} in the snow",
    "a photo of {} on a beach",
    "a photo of {} in a garden",
)


def learning_rate(config: LoopConfig, step: int) -> float:
    """Of the step that makes ``step`` finished steps ``step + 1``."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    return config.learning_rate * SCHEDULES[config.schedule](progress)


class Loop:
    """One method's training in one run folder. ``events`` is the whole of it."""

    def __init__(
        self,
        method: Method,
        run: Run,
        config: LoopConfig,
        *,
        seed: int,
        judge: Watch | None,
        crew: Crew | None = None,
    ) -> None:
        self.method, self.run, self.config, self.seed, self.judge = method, run, config, seed, judge
        self.crew = crew  # None: this process computes every gradient alone
        self.on_policy = method if isinstance(method, OnPolicy) else None
        self.parameters = dict(
            sorted(method.parameters().items(), key=lambda item: config.rate_factor(item[0]))
        )
        device = next(iter(self.parameters.values())).device.type
        self.optimizer = torch.optim.AdamW(
            self.groups(),
            lr=config.learning_rate,
            betas=(config.adam_beta1, config.adam_beta2),
            weight_decay=config.weight_decay,
            fused=device in ("cpu", "cuda"),  # one kernel for hundreds of small adapters
        )
        self.step = 0
        self.saved_step = -1
        self.whole = True  # False while the optimizer is between two states

    def groups(self) -> list[dict[str, Any]]:
        """For the optimizer: the parameters, in their order, by how many times the learning rate they get."""
        factors = {name: self.config.rate_factor(name) for name in self.parameters}
        return [
            {"params": [p for name, p in self.parameters.items() if factors[name] == one], "factor": one}
            for one in sorted(set(factors.values()))
        ]

    def events(self) -> Iterator[Event]:
        """Train from the newest checkpoint to the end; on any other way out, save the state.

        A run that is asked to stop ends before it draws or scores again, with the checkpoints that it has.
        """
        self.restore()
        try:
            while not self.ends_early():
                if self.checkpoint_due():
                    yield self.save()
                yield from self.samples()
                yield from self.scores()
                if self.step >= self.config.steps or self.stop():
                    break
                if self.on_policy is not None:
                    yield from self.on_policy.collect(self.step)
                yield self.advance()
        finally:
            if self.whole and self.step > max(self.saved_step, 0):
                self.save()

    # --- one step ---------------------------------------------------------------------------------
    def advance(self) -> Step:
        started = time.perf_counter()
        rate = learning_rate(self.config, self.step)
        with isolated_rng(self.seed, "step", self.step):
            loss, terms = self.accumulate()
            norm = self.clip()
            self.whole = False
            for group in self.optimizer.param_groups:
                group["lr"] = rate * group["factor"]
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            with torch.no_grad():
                self.method.after_step()
        self.step += 1
        self.run.history.append(
            {"step": self.step, "loss": loss, "terms": terms, "lr": rate, "grad_norm": norm}
        )
        self.whole = True
        return Step(self.step, self.config.steps, loss, terms, rate, norm, time.perf_counter() - started)

    def accumulate(self) -> tuple[float, dict[str, float]]:
        """Backward through ``accumulation`` batches; the means of the loss and of its terms."""
        if self.crew is None:
            values = gradient(self.method, self.config, self.step)
        else:
            state = self.on_policy.state(self.step) if self.on_policy is not None else {}
            values = self.crew.gradient(self.method, self.step, state)
        return values.pop("loss"), values

    def clip(self) -> float:
        """The norm of the gradient before it is clipped."""
        limit = self.config.max_grad_norm or math.inf
        norm = float(torch.nn.utils.clip_grad_norm_(self.parameters.values(), limit))
        require_finite(self.method, self.config, self.step, "gradient norm", norm)
        return norm

    # --- state on disk ----------------------------------------------------------------------------
    def checkpoint_due(self) -> bool:
        """Every N steps, at the end, and wherever a score needs something to point at."""
        step = self.step
        due = step % self.config.checkpoint_every == 0 or step == self.config.steps or self.score_due()
        return due and step > max(self.saved_step, 0)

    def save(self) -> Checkpoint:
        path = checkpoint_path(self.run.checkpoints, self.step)
        self.run.history.sync()
        self.run.scores.sync()
        save_checkpoint(path, self.tensors(), {"key": self.run.key, "step": self.step})
        self.saved_step = self.step
        protect = [checkpoint_path(self.run.checkpoints, best)] if (best := self.best_step()) else []
        prune_checkpoints(self.run.checkpoints, self.config.keep_checkpoints, protect)
        return Checkpoint(self.step, path)

    def tensors(self) -> dict[str, Tensor]:
        """Weights and optimizer moments under the parameters' names."""
        tensors = {f"param.{name}": p.detach() for name, p in self.parameters.items()}
        for name, p in self.parameters.items():
            for moment, value in self.optimizer.state.get(p, {}).items():
                tensors[f"adamw.{moment}.{name}"] = value
        if self.on_policy is not None:
            tensors |= {f"method.{name}": t for name, t in self.on_policy.state(self.step).items()}
        return tensors

    def restore(self) -> None:
        """Go to the newest valid checkpoint, and let the journals forget what came after it."""
        path = newest_checkpoint(self.run.checkpoints)
        if path is not None:
            tensors, state = load_checkpoint(path)
            self.load_parameters(tensors)
            self.load_moments(tensors)
            if self.on_policy is not None:
                own = {n.removeprefix("method."): t for n, t in tensors.items() if n.startswith("method.")}
                self.on_policy.load_state(own)
            self.step = self.saved_step = int(state["step"])
            log.info("Going on after step %d of %d (%s).", self.step, self.config.steps, path.name)
        self.run.history.rewind(self.step)
        rows = self.run.scores.rewind(self.step)
        if self.judge is not None:
            self.judge.recall(rows)

    def load_parameters(self, tensors: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for name, p in self.parameters.items():
                p.copy_(tensors[f"param.{name}"])

    def load_moments(self, tensors: Mapping[str, Tensor]) -> None:
        state = {
            number: {
                moment: tensors[f"adamw.{moment}.{name}"] for moment in ("step", "exp_avg", "exp_avg_sq")
            }
            for number, name in enumerate(self.parameters)
            if f"adamw.step.{name}" in tensors
        }
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})

    # --- what is drawn on the way -----------------------------------------------------------------
    def samples(self) -> Iterator[Event]:
        """Pictures of the subject in a few settings, unless this step's are there already."""
        every = self.config.sample_every
        if not every or self.step % every:
            return
        templates = SAMPLE_PROMPTS if self.on_policy is None else self.on_policy.sample_prompts
        paths = [self.run.samples / f"step-{self.step:06d}-{i}.png" for i in range(len(templates))]
        prompts = tuple(prompt.replace("{}", self.method.trigger) for prompt in templates)
        if not all(path.exists() for path in paths):
            pictures = yield from self.pictures(prompts)
            for picture, path in zip(pictures, paths, strict=True):
                save_png(picture, path)
        yield Sample(self.step, prompts, tuple(paths))

    def pictures(self, prompts: Sequence[str]) -> Generator[Phase, None, Tensor]:
        return draw(
            self.method.learned(),
            prompts,
            [picture_seed(self.seed, "sample", i) for i in range(len(prompts))],
            steps=self.config.sample_steps,
            guidance=self.config.sample_guidance,
            batch_size=len(prompts),
            phase="sampling",
        )

    # --- the held-out monitor ---------------------------------------------------------------------
    def score_due(self) -> bool:
        return self.judge is not None and self.judge.due(self.step, self.config.steps)

    def scores(self) -> Iterator[Event]:
        if self.judge is None or not self.score_due():
            return
        row = yield from self.judge.score(self.step, self.method.learned(), self.method.trigger)
        self.run.scores.append(row.record())
        yield self.judge.event(row)

    def stop(self) -> bool:
        return self.judge is not None and self.judge.stops()

    def ends_early(self) -> bool:
        return 0 < self.step < self.config.steps and self.run.stop_asked()

    def best_step(self) -> int | None:
        """The step to export by the monitor's rule; None while there is none."""
        return self.judge.best_step() if self.judge is not None else None


def train(
    method: Method,
    run: Run,
    config: LoopConfig,
    *,
    seed: int,
    judge: Watch | None,
    crew: Crew | None = None,
) -> Generator[Event, None, int]:
    """Train to the end, leave the best checkpoint's weights in ``method``, and return that checkpoint's step.

    Interrupt it by closing the iterator. ``crew``: the processes that share the work.
    """
    if judge is not None:
        yield from judge.prepare()  # first: missing encoders are to be said before the long work
    yield from method.prepare()
    with crew or nullcontext():
        loop = Loop(method, run, config, seed=seed, judge=judge, crew=crew)
        yield from loop.events()
    best = loop.best_step() or loop.step
    if best != loop.step:
        loop.load_parameters(load_checkpoint(checkpoint_path(run.checkpoints, best))[0])
    return best


def in_training_mode(events: Generator[Event, None, None]) -> Generator[Event, None, None]:
    """Run each piece of a generator's work with gradients and out of inference mode, and nothing between.

    A host may consume events under ``torch.inference_mode``, which belongs to the thread: a generator that
    left it inside a ``with`` across a ``yield`` would change it for the host.
    """
    advice: LikenessError | None = None
    try:
        while True:
            with torch.inference_mode(False), torch.enable_grad():
                try:
                    event = next(events)
                except StopIteration:
                    return
                except RuntimeError as error:
                    advice = out_of_memory(error)
                    if advice is None:
                        raise
            if advice is not None:  # raised out here: as a cause, the error would keep its tensors alive
                raise advice
            yield event
    finally:
        with torch.inference_mode(False), torch.enable_grad():
            events.close()
