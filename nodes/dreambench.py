"""Likeness / benchmark: prompts of DreamBench, InstructBooth and DreamBench++, and methods scored on them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import host, sockets
from .benchmarking import (
    UNTOUCHED,
    drawing_inputs,
    evaluation_outputs,
    label_of,
    learner_of,
    learning_inputs,
    settings_of,
)
from .datasets import CATEGORY
from .host import io
from .judges import judges_of, open_judges, roots
from .models import TOYBOX

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping

    from ..backbones.base import BaseModel
    from ..scoring.encoders import Encoders
    from ..scoring.evaluation import Evaluation
    from ..scoring.rewards import CombinedSpec, Reward, RewardSpec
    from ..subjects.dreambench import Benchmark
    from ..subjects.subject import Subject
    from ..trainers.events import Event
    from ..trainers.guard import IdentityGuard
    from ..trainers.prior import PriorPreservation

TOYBOX_DREAMBENCH = "toybox-dreambench"
INSTRUCTBOOTH = "instructbooth"
METHODS = [
    UNTOUCHED, "textual_inversion", "neti", "dreambooth", "custom_diffusion", INSTRUCTBOOTH
]  # fmt: skip
WITH_PRIOR = ("dreambooth", "custom_diffusion", INSTRUCTBOOTH)
LAYOUTS = ["dreambench", "instructbooth", "dreambench++"]
REWARDS = {
    "all": ["image_reward", "pick_score"],
    "image_reward": ["image_reward"],
    "pick_score": ["pick_score"],
    "none": [],
}


class LoadPromptBenchmark(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LikenessLoadPromptBenchmark",
            display_name="Load Prompt Benchmark",
            category=CATEGORY,
            description="Subjects, and the prompts that every method is asked about them: DreamBench, "
            "InstructBooth's set or DreamBench++, read from their own folders as they are.",
            inputs=[
                io.String.Input(
                    "folder",
                    default=TOYBOX_DREAMBENCH,
                    tooltip="toybox-dreambench: 8 drawn subjects in DreamBench's layout, made here. Else the "
                    "dataset's folder, full or below ComfyUI's input folder.",
                ),
                io.Combo.Input(
                    "layout",
                    options=LAYOUTS,
                    default="dreambench",
                    tooltip="dreambench: a folder per subject and prompts_and_classes.txt. instructbooth: "
                    "folders cat, dog, teddy_bear and so on; its prompts are built in. dreambench++: its "
                    "images and captions folders.",
                ),
                io.Int.Input(
                    "most_subjects", default=0, min=0, max=10000, tooltip="Only the first so many. 0: all."
                ),
                io.Int.Input(
                    "held_out",
                    default=0,
                    min=0,
                    max=100,
                    tooltip="Photos of each subject that are kept from training, to judge by. 0: the papers' "
                    "way, which compares with the very photos that were learned.",
                ),
                io.String.Input(
                    "identifier", default="sks", tooltip="DreamBooth's rare word for each subject."
                ),
            ],
            outputs=[
                sockets.Benchmark.Output(
                    "benchmark", display_name="benchmark", tooltip="For Benchmark Prompts."
                ),
                io.String.Output(
                    "prompts", display_name="prompts", tooltip="Every prompt with its subject in front."
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, layout: str | None) -> bool | str:
        return host.listed(cls, layout=layout)

    @classmethod
    def fingerprint_inputs(cls, folder: str, **inputs: Any) -> str:
        from .subjects import find_photos, fingerprint

        return "" if folder.strip() == TOYBOX_DREAMBENCH else fingerprint(find_photos(folder))

    @classmethod
    def execute(
        cls, folder: str, layout: str, most_subjects: int, held_out: int, identifier: str
    ) -> io.NodeOutput:
        from ..subjects.dreambench import load_benchmark

        place, layout = _folder(folder, layout)
        benchmark = load_benchmark(place, layout, identifier=identifier)
        benchmark = benchmark.reduced(most_subjects=most_subjects, held_out=held_out)
        return io.NodeOutput(benchmark, benchmark.listing())


class BenchmarkPrompts(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LikenessBenchmarkPrompts",
            display_name="Benchmark Prompts",
            category=CATEGORY,
            description="Learns every subject of a prompt benchmark, draws every prompt, and scores: what "
            "the prompt says (CLIP-T, ImageReward, PickScore), and whom it shows (DINO, CLIP-I). A row of "
            "InstructBooth's tables 1 and 2. Stopped, it goes on.",
            inputs=[
                sockets.Base.Input("base", tooltip="From Load Base Model."),
                sockets.Benchmark.Input("benchmark", tooltip="From Load Prompt Benchmark."),
                io.Combo.Input(
                    "method",
                    options=METHODS,
                    default="dreambooth",
                    tooltip="How subjects are learned. base model: not at all; prompts say the class noun. "
                    "instructbooth: DreamBooth, then alignment on a reward.",
                ),
                *learning_inputs(),
                io.Int.Input(
                    "align_steps",
                    default=0,
                    min=0,
                    max=1000000,
                    tooltip="Of instructbooth: updates of the alignment. 0: the preset's.",
                ),
                io.Combo.Input(
                    "rewards",
                    options=list(REWARDS),
                    default="all",
                    tooltip="Which models of people's preferences score. Their weights must be on this "
                    "machine; an error says which files. Toybox has one of its own, in ImageReward's place.",
                ),
                io.Int.Input(
                    "images_per_prompt",
                    default=0,
                    min=0,
                    max=1000,
                    tooltip="Pictures of each prompt. 0: the paper's, 4 of DreamBench, 10 of InstructBooth's "
                    "set, 1 of DreamBench++.",
                ),
                io.Int.Input(
                    "prompts_per_subject",
                    default=0,
                    min=0,
                    max=1000,
                    tooltip="Only so many, spread over the list. 0: all.",
                ),
                *drawing_inputs(steps=50, guidance=7.5),
                sockets.Prior.Input(
                    "prior",
                    optional=True,
                    tooltip="Prior Preservation, for dreambooth, custom_diffusion and instructbooth. The "
                    "paper preset brings its own.",
                ),
                sockets.Reward.Input(
                    "reward", optional=True, tooltip="What instructbooth raises. Nothing plugged in: auto."
                ),
                sockets.Guard.Input(
                    "guard", optional=True, tooltip="Identity Guard, for instructbooth's alignment."
                ),
            ],
            outputs=evaluation_outputs(),
        )

    @classmethod
    def validate_inputs(cls, method: str | None, preset: str | None, rewards: str | None) -> bool | str:
        return host.listed(cls, method=method, preset=preset, rewards=rewards)

    @classmethod
    def execute(
        cls,
        base: BaseModel,
        benchmark: Benchmark,
        method: str,
        preset: str,
        train_steps: int,
        align_steps: int,
        rewards: str,
        seed: int,
        label: str,
        prior: PriorPreservation | None = None,
        reward: RewardSpec | CombinedSpec | None = None,
        guard: IdentityGuard | None = None,
        **drawing: Any,
    ) -> io.NodeOutput:
        host.current.free_memory()
        way = Way(
            base=base, method=method, preset=preset, seed=seed, train_steps=train_steps,
            align_steps=align_steps, prior=prior, reward=reward, guard=guard,
        )  # fmt: skip
        label = label.strip() or label_of(method)
        found = host.follow(_evaluate(way, benchmark, rewards, label, {**drawing, "seed": seed}))
        return io.NodeOutput(found, found.summary())


NODES: list[type[io.ComfyNode]] = [LoadPromptBenchmark, BenchmarkPrompts]


@dataclass(frozen=True, kw_only=True)
class Way:
    """How subjects are learned: the widgets and plugs that say so."""

    base: BaseModel
    method: str
    preset: str
    seed: int
    train_steps: int
    align_steps: int
    prior: PriorPreservation | None
    reward: RewardSpec | CombinedSpec | None
    guard: IdentityGuard | None

    def learner(self, benchmark: Benchmark, encoders: Encoders) -> tuple[Any, Any]:
        """What learns a subject, and the settings that it learns with."""
        if self.method == UNTOUCHED:
            return None, [UNTOUCHED]
        if self.method == INSTRUCTBOOTH:
            return self._instructbooth(benchmark, encoders)
        config = settings_of(self.method, self.preset, self.base, self.train_steps)
        prior = {"prior": self._prior()} if self.method in WITH_PRIOR else {}
        learner = learner_of(self.base, self.method, config, self.seed, **prior)
        return learner, [self.method, config, self.seed, prior]

    def _instructbooth(self, benchmark: Benchmark, encoders: Encoders) -> tuple[Any, Any]:
        from ..scoring.rewards import RewardSpec
        from ..subjects.prompt_pool import pool_of
        from ..trainers.instructbooth import InstructBooth, train_instructbooth

        config = InstructBooth(
            personalize=self._stage_one(),
            align=settings_of("align", self.preset, self.base, self.align_steps),
            prior=self._prior(),
            reward=self.reward or RewardSpec(),
            guard=self.guard,
        )
        pools = {
            item.subject.name: pool_of(TOYBOX if self.base.source == TOYBOX else item.practice)
            for item in benchmark.items
        }
        told: dict[str, Any] = {
            "runs_root": host.current.runs, "seed": self.seed,
            "encoders": encoders, "roots": roots(),
        }  # fmt: skip

        def learner(subject: Subject) -> Generator[Event, None, None]:
            pool = pools[subject.name]
            return train_instructbooth(self.base, subject, config, pool=pool, **told)

        return learner, [self.method, config, self.seed, list(pools.values())]

    def _stage_one(self) -> Any:
        from ..trainers.dreambooth import DreamBoothConfig

        if self.preset == "practical":
            return settings_of("dreambooth", self.preset, self.base, self.train_steps)
        return DreamBoothConfig.instructbooth(**({"steps": self.train_steps} if self.train_steps else {}))

    def _prior(self) -> PriorPreservation | None:
        from ..trainers.prior import PriorPreservation

        return self.prior or (PriorPreservation() if self.preset == "paper" else None)


def _folder(folder: str, layout: str) -> tuple[Path, str]:
    from .subjects import find_photos

    if folder.strip() != TOYBOX_DREAMBENCH:
        return find_photos(folder), layout
    from ..backbones.toybox.dreambench import write_dreambench

    return write_dreambench(host.current.output / "likeness" / "datasets" / TOYBOX_DREAMBENCH), "dreambench"


def _evaluate(
    way: Way, benchmark: Benchmark, rewards: str, label: str, drawing: dict[str, Any]
) -> Generator[Event, None, Evaluation]:
    """The evaluation as a work that ``host.follow`` shows."""
    from ..scoring.prompted import Prompted
    from ..trainers.evaluate import PromptedConfig, evaluate
    from ..trainers.events import Phase

    yield Phase("loading", 0, 1)
    encoders = open_judges(way.base)
    config = PromptedConfig(**drawing)
    exam = Prompted(
        benchmark=benchmark,
        encoders=encoders,
        rewards=_opened(REWARDS[rewards], way.base, encoders),
        images_per_prompt=config.images_per_prompt,
        prompts_per_subject=config.prompts_per_subject,
    )
    learner, settings = way.learner(benchmark, encoders)
    root = host.current.output / "likeness" / "benchmarks"
    return (yield from evaluate(way.base, exam, learner, config, label=label, settings=settings, root=root))


def _opened(names: list[str], base: BaseModel, encoders: Encoders) -> Mapping[str, Reward]:
    """The columns' models. Toybox's own stands in ImageReward's place; it has none in PickScore's."""
    from ..backbones.device import device_name
    from ..scoring.rewards import About, RewardSpec, open_reward

    device = device_name(base.device)
    about = About(family=judges_of(base), encoders=encoders, device=device, roots=roots())
    specs = {"image_reward": RewardSpec(), "pick_score": RewardSpec(name="pick_score")}
    known = [name for name in names if base.source != TOYBOX or name == "image_reward"]
    return {name: open_reward(specs[name], about) for name in known}
