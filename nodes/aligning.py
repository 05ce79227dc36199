"""Likeness / align: prompts to practise, the guard, and the trainers that raise a reward."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from . import host, learning, sockets, widgets
from .host import io
from .judges import open_judges, roots
from .models import TOYBOX
from .rewards import CATEGORY

if TYPE_CHECKING:
    from ..backbones.base import BaseModel
    from ..scoring.encoders import Encoders
    from ..scoring.rewards import CombinedSpec, RewardSpec
    from ..subjects.prompt_pool import PromptPool
    from ..subjects.subject import Subject
    from ..trainers.events import Done
    from ..trainers.guard import IdentityGuard
    from .sockets import AppliedModel

OWN = "my own"
LISTS = [OWN, "pets", "toys", "vessels", "vehicles", "toybox", "dreambench objects", "dreambench live"]


class Pool(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LikenessPromptPool",
            display_name="Prompt Pool",
            category=CATEGORY,
            description="What the subject is to practise: activities, with its name and, in a share of the "
            "prompts, with the class alone, which learns faster (InstructBooth, section 4.2).",
            inputs=[
                io.Combo.Input(
                    "list",
                    options=LISTS,
                    default="toybox",
                    tooltip="Activities for a kind of subject: the paper's as far as its text names them, "
                    "filled up with our own. my own: only what is written below.",
                ),
                io.String.Input(
                    "activities",
                    default="",
                    multiline=True,
                    tooltip="One per line, such as 'playing soccer'. Beside the list's.",
                ),
                io.String.Input(
                    "unseen",
                    default="",
                    multiline=True,
                    tooltip="Activities that are never trained, only scored. Beside the list's.",
                ),
                widgets.share(
                    "identifier_share",
                    0.5,
                    "Share of prompts with the identifier; the others name the class alone.",
                ),
                io.String.Input(
                    "template",
                    default="a {} {activity}",
                    tooltip="{} is the subject or its class, {activity} the phrase.",
                ),
            ],
            outputs=[
                sockets.Prompts.Output("pool", display_name="prompts", tooltip="For Align."),
                io.String.Output(
                    "seen_prompts", display_name="seen", tooltip="Trained activities, {} for the subject."
                ),
                io.String.Output(
                    "unseen_prompts", display_name="unseen", tooltip="Unseen ones, {} for the subject."
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, list: str | None) -> bool | str:
        return host.listed(cls, list=list)

    @classmethod
    def execute(
        cls, list: str, activities: str, unseen: str, identifier_share: float, template: str
    ) -> io.NodeOutput:
        from ..subjects.prompt_pool import ACTIVITIES, PromptPool

        listed = ACTIVITIES.get(list)
        own, never = activities.splitlines(), unseen.splitlines()
        pool = PromptPool(
            activities=(*(listed.seen if listed else ()), *own),
            unseen=(*(listed.unseen if listed else ()), *never),
            identifier_share=identifier_share,
            template=template,
        )
        lines = ["\n".join(pool.prompt("{}", a) for a in some) for some in (pool.activities, pool.unseen)]
        return io.NodeOutput(pool, *lines)


class Guard(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LikenessIdentityGuard",
            display_name="Identity Guard",
            category=CATEGORY,
            description="Watches alignment on pictures that it is not rewarded for: is it still the subject, "
            "and does an independent scorer agree with the reward? Stops by a rule, and keeps the best.",
            inputs=[
                io.Int.Input("every", default=20, min=1, max=100000, tooltip="Updates between two looks."),
                io.Float.Input(
                    "max_drop",
                    default=0.05,
                    min=0.001,
                    max=1.0,
                    step=0.005,
                    tooltip="Likeness to the held-out photos that may be lost.",
                ),
                io.Combo.Input(
                    "act",
                    options=["stop", "weigh"],
                    default="stop",
                    tooltip="stop: end the training. weigh: let likeness count beside the reward, the more "
                    "the more of it is lost.",
                ),
                io.Int.Input(
                    "images_per_prompt", default=2, min=1, max=64, tooltip="Pictures of each prompt."
                ),
                widgets.steps(20, "Denoising steps of these pictures."),
                widgets.guidance(5.0, "Of these pictures."),
                widgets.batch_size(16, "Pictures drawn at once."),
                sockets.Reward.Input(
                    "witness", optional=True, tooltip="The independent scorer. Nothing plugged in: CLIP-T."
                ),
            ],
            outputs=[sockets.Guard.Output("guard", display_name="guard", tooltip="For Align.")],
        )

    @classmethod
    def validate_inputs(cls, act: str | None) -> bool | str:
        return host.listed(cls, act=act)

    @classmethod
    def execute(cls, witness: RewardSpec | None = None, **settings: Any) -> io.NodeOutput:
        from ..trainers.guard import WITNESS, IdentityGuard

        return io.NodeOutput(IdentityGuard(witness=witness or WITNESS, **settings))


def _inputs(presets: list[str], about: str, *own: Any) -> list[Any]:
    """What both trainers take."""
    return [
        sockets.Model.Input(
            "model", tooltip="The personalized model: a base with what was learned, from Apply Concept."
        ),
        sockets.Subject.Input("subject", tooltip="Its words; held-out photos watch over the likeness."),
        sockets.Prompts.Input("prompts", tooltip="From Prompt Pool: what to practise."),
        io.Combo.Input("preset", options=presets, default="practical", tooltip=about),
        learning.whole("steps", 1000000, "Updates."),
        learning.learning_rate(),
        learning.whole("batch_size", 4096, "Pictures in one update."),
        learning.whole("denoising_steps", 1000, "Steps of the pictures that it learns from."),
        learning.number("guidance", 30.0, 0.1, "Guidance, the same in drawing and learning."),
        learning.whole("rank", 256, "Of the LoRA, and its alpha."),
        *own,
        io.Int.Input(
            "sample_every",
            default=20,
            min=0,
            max=100000,
            tooltip="Updates between sample pictures. 0 draws none.",
        ),
        widgets.seed("Of everything random. The same settings and seed find the finished run again."),
        sockets.Reward.Input("reward", optional=True, tooltip="What to raise. Nothing plugged in: auto."),
        sockets.Guard.Input("guard", optional=True, tooltip="Identity Guard: halts reward hacking."),
    ]


def _outputs() -> list[Any]:
    return [
        sockets.ConceptSocket.Output(
            "concept",
            display_name="concept",
            tooltip="A LoRA for the personalized model: apply it after the subject's own concept.",
        ),
        sockets.Model.Output("aligned", display_name="model", tooltip="Everything applied: for Generate."),
        sockets.Run.Output("run", display_name="run", tooltip="The whole run, for Report."),
        io.LossMap.Output(
            "loss_map",
            display_name="curves",
            tooltip="Loss and rewards of every update, for ComfyUI's Plot Loss Graph.",
        ),
        io.Image.Output(
            "samples", display_name="samples", tooltip="The last sample pictures; one black one if none."
        ),
    ]


class Align(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LikenessAlign",
            display_name="Align",
            category=CATEGORY,
            description="The subject learns to do what prompts say, and stays itself (InstructBooth, second "
            "stage): a policy gradient over the denoising steps, on any reward. A finished run returns at "
            "once, a stopped one goes on.",
            inputs=_inputs(
                ["practical", "paper", "dpok"],
                "practical: quick values for this kind of model, not tuned yet. paper: InstructBooth's "
                "settings; what it leaves open is DDPO's. dpok: with a penalty for leaving the personalized "
                "model.",
                learning.whole(
                    "images_per_epoch",
                    65536,
                    "Pictures drawn and scored at a time; a multiple of batch_size.",
                ),
                learning.whole("images_per_prompt", 4096, "Pictures of one prompt in an epoch."),
                learning.whole("rows_per_forward", 4096, "Steps learned at once: fewer need less memory."),
            ),
            outputs=_outputs(),
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, preset: str | None) -> bool | str:
        return host.listed(cls, preset=preset)

    @classmethod
    def execute(cls, **inputs: Any) -> io.NodeOutput:
        from ..trainers.align import AlignConfig, train_align

        return _aligned(AlignConfig, train_align, **inputs)


class AlignByGradient(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LikenessAlignByGradient",
            display_name="Align by Reward Gradient",
            category=CATEGORY,
            description="Follows the reward's own gradient through the last denoising steps (DRaFT, ReFL), "
            "with DreamBooth's loss beside it. Fast, and fast to hack a reward: plug in a guard.",
            inputs=_inputs(
                ["practical", "paper", "refl"],
                "practical: quick values for this kind of model, not tuned yet. paper: DRaFT-1. refl: ReFL.",
                learning.number("reward_weight", 1000.0, 0.001, "Of the reward beside DreamBooth's loss."),
            ),
            outputs=_outputs(),
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, preset: str | None) -> bool | str:
        return host.listed(cls, preset=preset)

    @classmethod
    def execute(cls, **inputs: Any) -> io.NodeOutput:
        from ..trainers.reward_gradient import RewardGradientConfig, train_reward_gradient

        return _aligned(RewardGradientConfig, train_reward_gradient, **inputs)


NODES: list[type[io.ComfyNode]] = [Pool, Guard, Align, AlignByGradient]


def _aligned(
    kind: Any,
    train: Any,
    *,
    model: AppliedModel,
    subject: Subject,
    prompts: PromptPool,
    preset: str,
    seed: int,
    reward: RewardSpec | CombinedSpec | None = None,
    guard: IdentityGuard | None = None,
    **settings: Any,
) -> io.NodeOutput:
    known = sockets.applied(model)
    config = learning.config_of(kind, preset, known.base, settings)
    host.current.free_memory()
    events = train(
        known.base, subject, config,
        concepts=known.concepts, pool=prompts, reward=reward, guard=guard, seed=seed,
        encoders=_encoders(known.base, guard), roots=roots(),
        runs_root=host.current.runs,
    )  # fmt: skip
    done = host.consume(events)
    losses, samples = learning.curves(done)
    aligned = sockets.AppliedModel(known.base, (*known.concepts, (done.concept, 1.0)))
    ui = learning.shown(done, "LoRA (aligned)")
    return io.NodeOutput(done.concept, aligned, done, losses | _rewards(done), samples, ui=ui)


def _encoders(base: BaseModel, guard: IdentityGuard | None) -> Encoders | None:
    """Opened where the guard or a reward may need them: a plain reward of its own does not."""
    if guard is None and base.source != TOYBOX:
        return None
    return open_judges(base)


def _rewards(done: Done) -> dict[str, list[float]]:
    """Reward curves by name, one value per update."""
    from ..trainers.run import Journal

    records = Journal(done.run_folder / "history.jsonl").read()
    names = [name for name in (records[0]["terms"] if records else {}) if name.startswith("reward")]
    return {name: [record["terms"].get(name, 0.0) for record in records] for name in names}
