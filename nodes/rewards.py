"""Likeness / align: what scores a picture, alone or together, and what they think of pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from . import host, sockets, widgets
from .host import io
from .judges import judges_of, roots
from .pictures import prompts_of

if TYPE_CHECKING:
    from collections.abc import Generator

    from ..backbones.base import BaseModel
    from ..scoring.rewards import CombinedSpec, RewardSpec
    from ..subjects.subject import Subject
    from ..trainers.events import Phase
    from .sockets import AppliedModel

CATEGORY = "Likeness/align"
REWARDS = ["auto", "image_reward", "pick_score", "clip_t", "aesthetic", "identity", "toybox_preference"]
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
                widgets.batch_size(8, "Pictures scored at once."),
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
        terms: list[Any] = []
        for place in PLACES:
            terms += [
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
                *terms,
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


NODES: list[type[io.ComfyNode]] = [Reward, CombineRewards, ScoreRewards]


def _scored(
    reward: RewardSpec | CombinedSpec,
    images_BHW3: Any,
    prompts: str,
    known: AppliedModel,
    subject: Subject | None,
) -> Generator[Phase, None, tuple[Any, str, float]]:
    import torch

    from ..backbones.device import device_name
    from ..scoring.rewards import About, open_reward, score_stream
    from ..trainers.events import Phase

    lines = prompts_of(prompts, len(images_BHW3), node="Score Rewards")
    concept = known.concepts[-1][0] if known.concepts else None
    about = About(
        family=judges_of(known.base),
        trigger=concept.trigger if concept else "",
        class_noun=subject.class_noun if subject else concept.class_noun if concept else "",
        photos=subject.photos if subject else (),
        device=device_name(known.base.device),
        roots=roots(),
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
