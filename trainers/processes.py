"""One training on several processes: the first leads, the others compute their share of every gradient.

``accelerate launch`` (or torchrun) starts the same command several times. The first process runs the graph,
owns the optimizer, and alone writes. The others wait in ``serve``: they are told what is trained, get the
parameters before every step, and give back the gradient of their rows. So nothing can drift apart, a run that
goes on needs nothing of them, and an interrupt is the first process's own affair.

The rows that all draw are those that one would draw, since randomness is a function of (seed, index) and each
takes its part of it: only the order of adding differs, and with it the last bits.
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from importlib import import_module
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..backbones import open_backbone
from ..backbones.base import Backbone, BaseModel
from ..core.errors import LikenessError
from ..core.randomness import isolated_rng
from .accumulate import gradient, out_of_memory, require_divisible
from .method import LoopConfig, Method, OnPolicy

log = logging.getLogger(__name__)

LAUNCHED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # what a launcher sets
PATIENCE = timedelta(days=7)  # the others wait while the first one draws and scores


@dataclass(frozen=True)
class Job:
    """What the others need to take part in a training."""

    base: BaseModel
    make: Callable[[Backbone], Method]  # can be pickled: a partial of a class
    config: LoopConfig
    seed: int


@dataclass(frozen=True)
class Work:
    """One step of it. ``state``: of a method whose batches come from what it has learned."""

    step: int
    state: Mapping[str, Tensor]


@dataclass(frozen=True)
class Answer:
    """What a process has to say of a step: its means, and which parameters got a gradient; or what failed."""

    values: Mapping[str, float]
    learned: frozenset[str]
    error: LikenessError | None = None


# --- the group ----------------------------------------------------------------------------------------


def led_by(work: Callable[[bool], int]) -> int:
    """``work`` in the first of the processes that a launcher started, told whether there are several; the
    others help its trainers. The exit code."""
    if not launched():
        return work(False)
    if not _join():
        return _serve()
    try:
        return work(True)
    finally:
        _dismiss()


def launched() -> bool:
    """Whether a launcher started this process as one of several."""
    return all(name in os.environ for name in LAUNCHED) and int(os.environ["WORLD_SIZE"]) > 1


def size() -> int:
    """How many processes train together: 1 where nobody launched several."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _join() -> bool:
    """Enter the launcher's group, each process with a GPU of its own as far as there are some. True for the
    process that leads."""
    global _over_nccl
    place, gpus = int(os.getenv("LOCAL_RANK", "0")), torch.cuda.device_count()
    _over_nccl = gpus >= int(os.getenv("LOCAL_WORLD_SIZE", os.environ["WORLD_SIZE"]))
    if gpus:
        torch.cuda.set_device(place % gpus)
    # Functions of this module have the group as a default argument: imported later, it would keep the group's
    # threads until the interpreter ends, where one of them may abort the process.
    import_module("torch.distributed.nn")
    dist.init_process_group("cpu:gloo,cuda:nccl" if _over_nccl else "gloo", timeout=PATIENCE)
    for name in LAUNCHED:  # what this process starts is none of the group
        del os.environ[name]
    return dist.get_rank() == 0


def _serve() -> int:
    """All that the others do: one training after the other, until the first process dismisses them."""
    for number in (signal.SIGINT, signal.SIGTERM):  # the first process stops, and says so
        signal.signal(number, signal.SIG_IGN)
    try:
        while (job := _told()) is not None:
            with torch.inference_mode(False), torch.enable_grad():
                _take_part(job)
    except RuntimeError as error:  # the first process is gone
        log.warning("Process %d ends: %s", dist.get_rank(), error)
        _leave(lost=True)
        return 1
    _leave(lost=False)
    return 0


def _dismiss() -> None:
    """The first process's last act."""
    lost = _astray
    if not lost:
        _tell(None)
    _leave(lost)


def _leave(lost: bool) -> None:
    """End the group's threads here. NCCL would wait for a process that is lost."""
    if not (lost and _over_nccl):
        dist.destroy_process_group()


# --- one training -------------------------------------------------------------------------------------


class Crew:
    """The processes of one training as the first of them sees them: a context around its steps."""

    def __init__(self, job: Job) -> None:
        self.job = job

    def __enter__(self) -> Crew:
        """Call it after the method is prepared here: what that wrote, the others read."""
        require_divisible(self.job.config, size())
        _tell(self.job)
        with _together():
            _agreed(READY)
        return self

    def __exit__(self, *failure: object) -> None:
        if not _astray:
            _tell(None)

    def gradient(self, method: Method, step: int, state: Mapping[str, Tensor]) -> dict[str, float]:
        """As ``accumulate.gradient`` of one process. What fails in any of them is raised here."""
        _tell(Work(step, {name: tensor.cpu() for name, tensor in state.items()}))
        with _together():
            return _step(self.job, method, Work(step, {}))


def _take_part(job: Job) -> None:
    """As one of the others, from a job's beginning to its end."""
    with ExitStack() as stack, suppress(LikenessError):  # the first process has the error too, and says so
        own = READY
        try:
            method = stack.enter_context(closing(job.make(open_backbone(job.base))))
            for _ in method.prepare():
                pass
        except Exception as error:
            own = _failed(error)
        _agreed(own)
        while (work := _told()) is not None:
            with suppress(LikenessError):
                _step(job, method, work)
            for p in method.parameters().values():
                p.grad = None


def _step(job: Job, method: Method, work: Work) -> dict[str, float]:
    """Every process's part in one step; afterwards the first one has the mean of all gradients."""
    parameters = method.parameters()
    _broadcast([p.detach() for p in parameters.values()])
    try:
        if dist.get_rank() > 0 and isinstance(method, OnPolicy):
            method.load_state(work.state)
            for _ in method.collect(work.step):
                pass
        with isolated_rng(job.seed, "step", work.step):
            values = gradient(method, job.config, work.step, rank=dist.get_rank(), size=size())
        own = Answer(values, frozenset(name for name, p in parameters.items() if p.grad is not None))
    except Exception as error:
        own = _failed(error)
    answers = _agreed(own)
    learned = frozenset.union(*(answer.learned for answer in answers))
    _mean_gradients([p for name, p in parameters.items() if name in learned])
    names = dict.fromkeys(name for answer in answers for name in answer.values)
    return {name: sum(answer.values.get(name, 0.0) for answer in answers) / size() for name in names}


def _failed(error: Exception) -> Answer:
    """An error as one that a user can read, and another process can receive."""
    if not isinstance(error, LikenessError):
        log.error("Process %d of the training failed", dist.get_rank(), exc_info=error)
        advice = out_of_memory(error) if isinstance(error, RuntimeError) else None
        told = f"Process {dist.get_rank()} of the training failed: {type(error).__name__}: {error}"
        error = advice or LikenessError(told)
    return Answer({}, frozenset(), error)


# --- what goes between them -----------------------------------------------------------------------------

READY = Answer({}, frozenset())
_over_nccl = False  # which refuses two processes on one GPU: then numbers go over the CPU
_astray = False  # True while the first process is within a step, and for good once it lost another one


@contextmanager
def _together() -> Iterator[None]:
    """Around what all take part in, in the first process. Left halfway, nobody can be told anything more."""
    global _astray
    _astray = True
    try:
        yield
    except LikenessError:  # all have agreed on it
        _astray = False
        raise
    except RuntimeError as error:
        raise LikenessError(
            "Another process of this training has ended",
            fix="Its own message says why. The same command goes on from the last checkpoint.",
        ) from error
    _astray = False


def _tell(message: Job | Work | None) -> None:
    with _together():
        dist.broadcast_object_list([message], src=0)


def _told() -> Any:
    message: list[Any] = [None]
    dist.broadcast_object_list(message, src=0)
    return message[0]


def _agreed(own: Answer) -> list[Answer]:
    """What all answer, in every process. An error of any of them is raised in all."""
    answers: list[Any] = [None] * size()
    dist.all_gather_object(answers, own)
    for answer in answers:
        if answer.error is not None:
            raise answer.error
    return answers


def _broadcast(tensors: Sequence[Tensor]) -> None:
    """The first process's values, in all."""
    flat = _flat(tensors)
    dist.broadcast(flat, src=0)
    _pour(flat, tensors)


def _mean_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """The mean over the processes, in the first. One that a process did not use counts as 0 there."""
    for p in parameters:
        p.grad = torch.zeros_like(p) if p.grad is None else p.grad
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not gradients:
        return
    flat = _flat(gradients)
    dist.reduce(flat, dst=0)
    _pour(flat / size(), gradients)


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    """All values in one tensor, where the group can send it from."""
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    return flat if _over_nccl else flat.cpu()


def _pour(flat: Tensor, tensors: Sequence[Tensor]) -> None:
    parts = torch.split(flat, [tensor.numel() for tensor in tensors])
    with torch.no_grad():
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.copy_(part.view_as(tensor))
