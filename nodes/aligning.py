"""Likeness / align: rewards, prompts to practise, the guard, and the trainers that raise a reward."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from . import host, sockets
from .host import io
from .models import TOYBOX, judges_of
from .training import AS_PRESET, _config, _curves, _samples

if TYPE_CHECKING:
    from collections.abc import Generator

    from ..backbones.base import BaseModel
    from ..scoring.rewards import CombinedSpec, RewardSpec
    from ..subjects.prompt_pool import PromptPool
    from ..subjects.subject import Subject
    from ..trainers.events import Done, Phase
    from ..trainers.guard import IdentityGuard
    from .sockets import AppliedModel

CATEGORY = "Likeness/align"
REWARDS = ["auto", "image_reward", "pick_score", "clip_t", "aesthetic", "identity", "toybox_preference"]
OWN = "my own"
LISTS = [OWN, "pets", "toys", "vessels", "vehicles", "toybox", "dreambench objects", "dreambench live"]
NO_FLOOR = -1000.0
PLACES = ("", "2", "3", "4")  # rewards that one Combine Rewards takes


class Reward(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LikenessReward",
            display_name="Reward",
            category=CATEGORY,
            description="What scores a picture: how well it does what its prompt says, or whether it still "
            "shows the subject.",
            inputs=[
                io.Combo.Input(
                    "name",
                    options=REWARDS,
                    default="auto",
                    tooltip="auto: Toybox's own for a Toybox model, else ImageReward. Weights must be on "
                    "this machine, in models/likeness; an error says which files. identity: likeness to "
                    "the training photos.",
                ),
                io.String.Input(
                    "source",
                    default="",
                    tooltip="A file or folder with the weights, where they are elsewhere.",
                ),
                io.Boolean.Input(
                    "strip_identifier",
                    default=True,
                    tooltip="Let the reward read 'a dog' for 'a sks dog': it never met the word.",
                ),
                io.Int.Input("batch_size", default=8, min=1, max=256, tooltip="Pictures scored at once."),
            ],
            outputs=[sockets.Reward.Output("reward", display_name="reward", tooltip="For Align.")],
        )

    @classmethod
    def validate_inputs(cls, name: str | None) -> bool | str:
        return host.listed(cls, name=name)

    @classmethod
    def execute(cls, **settings: Any) -> io.NodeOutput:
        from ..scoring.rewards import RewardSpec

        settings["source"] = settings["source"].strip()
        return io.NodeOutput(RewardSpec(**settings))


class CombineRewards(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        widgets: list[Any] = []
        for place in PLACES:
            widgets += [
                io.Float.Input(
                    f"weight{place}",
                    default=1.0,
                    min=-100.0,
                    max=100.0,
                    step=0.05,
                    tooltip="How much this reward counts.",
                ),
                io.Float.Input(
                    f"floor{place}",
                    default=NO_FLOOR,
                    min=NO_FLOOR,
                    max=1000.0,
                    step=0.01,
                    tooltip=f"Scores under it cost ten times what they lack. {NO_FLOOR:g}: no floor.",
                ),
            ]
        return io.Schema(
            node_id="LikenessCombineRewards",
            display_name="Combine Rewards",
            category=CATEGORY,
            description="Several rewards as one: weights, a common scale, and floors that must hold.",
            inputs=[
                io.Combo.Input(
                    "normalise",
                    options=["batch", "none"],
                    default="batch",
                    tooltip="batch: every reward counts in its own spread over the pictures that are scored "
                    "together. none: as it is.",
                ),
                *widgets,
                *(
                    sockets.Reward.Input(f"reward{place}", optional=True, tooltip="From a Reward node.")
                    for place in PLACES
                ),
            ],
            outputs=[sockets.Reward.Output("combined", display_name="reward", tooltip="For Align.")],
        )

    @classmethod
    def validate_inputs(cls, normalise: str | None) -> bool | str:
        return host.listed(cls, normalise=normalise)

    @classmethod
    def execute(cls, normalise: str, **plugged: Any) -> io.NodeOutput:
        from ..scoring.rewards import CombinedSpec, Part

        parts = [
            Part(
                reward=plugged[f"reward{place}"],
                weight=plugged[f"weight{place}"],
                floor=None if plugged[f"floor{place}"] == NO_FLOOR else plugged[f"floor{place}"],
            )
            for place in PLACES
            if plugged.get(f"reward{place}") is not None
        ]
        return io.NodeOutput(CombinedSpec(parts=tuple(parts), normalise=normalise))  # type: ignore[arg-type]


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
                io.Float.Input(
                    "identifier_share",
                    default=0.5,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="Share of prompts with the identifier; the others name the class alone.",
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
                io.Int.Input(
                    "steps", default=20, min=1, max=1000, tooltip="Denoising steps of these pictures."
                ),
                io.Float.Input(
                    "guidance", default=5.0, min=1.0, max=30.0, step=0.1, tooltip="Of these pictures."
                ),
                io.Int.Input("batch_size", default=16, min=1, max=256, tooltip="Pictures drawn at once."),
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
        io.Int.Input("steps", default=0, min=0, max=1000000, tooltip=f"Updates. {AS_PRESET}"),
        io.Float.Input(
            "learning_rate",
            default=0.0,
            min=0.0,
            max=1.0,
            step=1e-6,
            round=1e-9,
            tooltip=f"Step size of the optimizer. {AS_PRESET}",
        ),
        io.Int.Input(
            "batch_size", default=0, min=0, max=4096, tooltip=f"Pictures in one update. {AS_PRESET}"
        ),
        io.Int.Input(
            "denoising_steps",
            default=0,
            min=0,
            max=1000,
            tooltip=f"Steps of the pictures that it learns from. {AS_PRESET}",
        ),
        io.Float.Input(
            "guidance",
            default=0.0,
            min=0.0,
            max=30.0,
            step=0.1,
            tooltip=f"Guidance, the same in drawing and learning. {AS_PRESET}",
        ),
        io.Int.Input("rank", default=0, min=0, max=256, tooltip=f"Of the LoRA, and its alpha. {AS_PRESET}"),
        *own,
        io.Int.Input(
            "sample_every",
            default=20,
            min=0,
            max=100000,
            tooltip="Updates between sample pictures. 0 draws none.",
        ),
        io.Int.Input(
            "seed",
            default=0,
            min=0,
            max=2**31 - 1,
            control_after_generate=True,
            tooltip="Of everything random. The same settings and seed find the finished run again.",
        ),
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
                io.Int.Input(
                    "images_per_epoch",
                    default=0,
                    min=0,
                    max=65536,
                    tooltip=f"Pictures drawn and scored at a time; a multiple of batch_size. {AS_PRESET}",
                ),
                io.Int.Input(
                    "images_per_prompt",
                    default=0,
                    min=0,
                    max=4096,
                    tooltip=f"Pictures of one prompt in an epoch. {AS_PRESET}",
                ),
                io.Int.Input(
                    "rows_per_forward",
                    default=0,
                    min=0,
                    max=4096,
                    tooltip=f"Steps learned at once: fewer need less memory. {AS_PRESET}",
                ),
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

        return _aligned(AlignConfig, train_align, "LoRA (aligned)", **inputs)


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
                io.Float.Input(
                    "reward_weight",
                    default=0.0,
                    min=0.0,
                    max=1000.0,
                    step=0.001,
                    tooltip=f"Of the reward beside DreamBooth's loss. {AS_PRESET}",
                ),
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

        return _aligned(RewardGradientConfig, train_reward_gradient, "LoRA (aligned)", **inputs)


class ScoreRewards(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LikenessScoreRewards",
            display_name="Score Rewards",
            category=CATEGORY,
            description="What a reward thinks of pictures: a score each, and the best first.",
            inputs=[
                sockets.Reward.Input("reward", tooltip="From Reward or Combine Rewards."),
                io.Image.Input("images", tooltip="The pictures, as many for each prompt."),
                io.String.Input(
                    "prompts",
                    default="",
                    multiline=True,
                    tooltip="Their prompts, one per line: link them from Generate.",
                ),
                sockets.BaseOrModel.Input(
                    "model", tooltip="What drew them: chooses auto's reward; its concept's word is not read."
                ),
                sockets.Subject.Input(
                    "subject", optional=True, tooltip="For the identity reward, and the class noun."
                ),
            ],
            outputs=[
                io.Image.Output("sorted", display_name="IMAGE", tooltip="The pictures, the best first."),
                io.String.Output("table", display_name="table", tooltip="Rank, score and prompt of each."),
                io.Float.Output("mean", display_name="mean", tooltip="Of all scores."),
            ],
        )

    @classmethod
    def execute(
        cls,
        reward: RewardSpec | CombinedSpec,
        images: Any,
        prompts: str,
        model: BaseModel | AppliedModel,
        subject: Subject | None = None,
    ) -> io.NodeOutput:
        pictures, rows, mean = host.follow(_scored(reward, images, prompts, sockets.applied(model), subject))
        return io.NodeOutput(pictures, rows, mean)


NODES: list[type[io.ComfyNode]] = [
    Reward,
    CombineRewards,
    Pool,
    Guard,
    Align,
    AlignByGradient,
    ScoreRewards,
]


def _aligned(
    kind: Any,
    train: Any,
    made: str,
    *,
    model: AppliedModel,
    subject: Subject,
    prompts: PromptPool,
    preset: str,
    seed: int,
    reward: RewardSpec | CombinedSpec | None = None,
    guard: IdentityGuard | None = None,
    **widgets: Any,
) -> io.NodeOutput:
    known = sockets.applied(model)
    config = _config(kind, preset, known.base, widgets)
    host.current.free_memory()
    events = train(
        known.base, subject, config,
        concepts=known.concepts, pool=prompts, reward=reward, guard=guard, seed=seed,
        encoders=_encoders(known.base, reward, guard), roots=_roots(),
        runs_root=host.current.runs,
    )  # fmt: skip
    done = host.consume(events)
    losses, samples = _curves(done)
    aligned = sockets.AppliedModel(known.base, (*known.concepts, (done.concept, 1.0)))
    ui = {
        "images": host.shown(_samples(done)),
        "likeness": [{**host.made(made, done.concept.path), "run": done.run_folder.name}],
    }
    return io.NodeOutput(done.concept, aligned, done, losses | _rewards(done), samples, ui=ui)


def _roots() -> list[Any]:
    return [host.current.models / "likeness"]


def _encoders(base: BaseModel, reward: Any, guard: Any) -> Any:
    """Opened where the guard or a reward may need them: a plain reward of its own does not."""
    from ..scoring.encoders import open_encoders

    if guard is None and base.source != TOYBOX:
        return None
    return open_encoders(judges_of(base), device=base.device, roots=_roots())


def _rewards(done: Done) -> dict[str, list[float]]:
    """Reward curves by name, one value per update."""
    from ..trainers.run import Journal

    records = Journal(done.run_folder / "history.jsonl").read()
    names = [name for name in (records[0]["terms"] if records else {}) if name.startswith("reward")]
    return {name: [record["terms"].get(name, 0.0) for record in records] for name in names}


def _scored(
    reward: RewardSpec | CombinedSpec,
    images_BHW3: Any,
    prompts: str,
    known: AppliedModel,
    subject: Subject | None,
) -> Generator[Phase, None, tuple[Any, str, float]]:
    import torch

    from ..scoring.encoders import default_device
    from ..scoring.rewards import About, open_reward, score_stream
    from ..trainers.events import Phase

    lines = _lines(prompts, len(images_BHW3))
    concept = known.concepts[-1][0] if known.concepts else None
    device = known.base.device
    about = About(
        family=judges_of(known.base),
        trigger=concept.trigger if concept else "",
        class_noun=subject.class_noun if subject else concept.class_noun if concept else "",
        photos=subject.photos if subject else (),
        device=default_device() if device == "auto" else device,
        roots=_roots(),
    )
    yield Phase("loading reward", 0, 1)
    opened = open_reward(reward, about)
    pairs = zip(images_BHW3.permute(0, 3, 1, 2), lines, strict=True)
    scores = []
    size = len(lines) if getattr(reward, "normalise", "") == "batch" else 8  # a batch's scale is of all
    for score in score_stream(opened, pairs, batch_size=size):
        scores.append(score)
        yield Phase("scoring", len(scores), len(lines))
    order = sorted(range(len(scores)), key=lambda n: -scores[n])
    table = "\n".join(f"{rank + 1}. {scores[n]:.4f}  {lines[n]}" for rank, n in enumerate(order))
    return images_BHW3[torch.tensor(order)], table, sum(scores) / len(scores)


def _lines(prompts: str, count: int) -> list[str]:
    """Each picture's prompt: one for all, or as many pictures for each line."""
    from ..core.errors import LikenessError

    lines = [line.strip() for line in prompts.splitlines() if line.strip()]
    each, rest = divmod(count, max(len(lines), 1))
    if not lines or rest or not each:
        raise LikenessError(
            f"Score Rewards got {count} pictures and {len(lines)} prompts",
            expected="as many pictures for each prompt",
            fix="Link prompts from the Generate node that drew the pictures",
        )
    return [lines[n // each] for n in range(count)]
