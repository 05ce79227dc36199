"""The nodes of alignment, on a tiny model."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from likeness.backbones import open_backbone
from likeness.backbones.base import BaseModel, LoraSpec
from likeness.concepts.concept import Artifact, Concept
from likeness.concepts.saving import save_concept
from likeness.core.errors import LikenessError
from likeness.nodes import aligning, host, learning, rewards, scoring, training
from likeness.nodes.sockets import AppliedModel
from likeness.scoring.rewards import RewardSpec
from likeness.subjects import from_images
from likeness.subjects.prompt_pool import ACTIVITIES, PromptPool
from likeness.trainers.align import AlignConfig
from likeness.trainers.dreambooth import DreamBoothConfig
from likeness.trainers.guard import IdentityGuard
from likeness.trainers.reward_gradient import RewardGradientConfig

REWARD = RewardSpec(name="toybox_preference")


@pytest.fixture
def plain(tmp_path: Path) -> Iterator[host.Plain]:
    before = host.current
    own = host.Plain()
    own.place(output=tmp_path / "output", input=tmp_path / "input")
    host.use(own)
    yield own
    host.use(before)


def widgets(node: Any) -> dict[str, Any]:
    return {spec.id: spec.default for spec in node.GET_SCHEMA().inputs if hasattr(spec, "default")}


@pytest.mark.parametrize(("node", "kind"), [(rewards.Reward, RewardSpec), (aligning.Guard, IdentityGuard)])
def test_untouched_widgets_are_the_defaults(node: Any, kind: Any) -> None:
    assert node.execute(**widgets(node)).args[0] == kind()


@pytest.mark.parametrize(
    ("node", "kind", "presets"),
    [
        (aligning.Align, AlignConfig, ("paper", "dpok")),
        (aligning.AlignByGradient, RewardGradientConfig, ("paper", "refl")),
        (training.TrainDreamBooth, DreamBoothConfig, ("paper", "instructbooth")),
    ],
)
def test_an_untouched_trainer_is_its_preset(node: Any, kind: Any, presets: tuple[str, ...]) -> None:
    values = {k: v for k, v in widgets(node).items() if k not in ("preset", "seed")} | {"sample_every": 0}
    assert set(values) <= {field.name for field in dataclasses.fields(kind)}
    for preset in presets:
        assert learning.config_of(kind, preset, BaseModel(), values) == getattr(kind, preset)()
    assert learning.config_of(kind, "practical", BaseModel(), values) == kind.practical("toybox")


def test_a_pool_is_a_list_and_own_lines() -> None:
    values = widgets(aligning.Pool) | {"activities": "dancing\n\n", "unseen": "resting"}
    pool, seen, unseen = aligning.Pool.execute(**values).args
    assert pool.activities == (*ACTIVITIES["toybox"].seen, "dancing")
    assert seen.splitlines()[-1] == "a {} dancing" and unseen.splitlines()[-1] == "a {} resting"
    alone = aligning.Pool.execute(**values | {"list": aligning.OWN}).args[0]
    assert (alone.activities, alone.unseen) == (("dancing",), ("resting",))
    with pytest.raises(LikenessError, match="no activity"):
        aligning.Pool.execute(**values | {"list": aligning.OWN, "activities": " "})
    assert set(aligning.LISTS) == {aligning.OWN, *ACTIVITIES}


def test_only_what_is_plugged_in_is_combined() -> None:
    values = widgets(rewards.CombineRewards) | {"weight3": 0.5, "floor3": 0.2, "weight2": 7.0}
    both = rewards.CombineRewards.execute(reward=REWARD, reward3=RewardSpec(name="identity"), **values).args[
        0
    ]
    assert [(part.reward.name, part.weight, part.floor) for part in both.parts] == [
        ("toybox_preference", 1.0, None),
        ("identity", 0.5, 0.2),
    ]
    with pytest.raises(LikenessError, match="No reward"):
        rewards.CombineRewards.execute(**values)


def test_pictures_are_sorted_by_what_they_are_worth(plain: host.Plain) -> None:
    images = torch.rand(4, 64, 64, 3, generator=torch.Generator().manual_seed(0))
    ordered, table, mean = rewards.ScoreRewards.execute(
        reward=REWARD, images=images, prompts="a red fish\na cat", model=BaseModel()
    ).args
    scores = [float(line.split()[1]) for line in table.splitlines()]
    assert scores == sorted(scores, reverse=True) and mean == pytest.approx(sum(scores) / 4, abs=1e-3)
    assert ordered.shape == images.shape and sum("a cat" in line for line in table.splitlines()) == 2
    with pytest.raises(LikenessError, match="4 pictures and 3 prompts"):
        rewards.ScoreRewards.execute(reward=REWARD, images=images, prompts="a\nb\nc", model=BaseModel())


@pytest.fixture
def concept(tiny_pipeline: Path, tmp_path: Path) -> tuple[BaseModel, Concept]:
    """A LoRA as DreamBooth leaves it."""
    base = BaseModel(source=str(tiny_pipeline), device="cpu")
    backbone = open_backbone(base)
    lora = backbone.attach_lora(LoraSpec(rank=2, alpha=2.0))
    tensors = {name: p.detach().clone() for name, p in lora.parameters().items()}
    lora.detach()
    artifact = Artifact(
        kind="lora", tensors=tensors, trigger="sks dog", class_noun="dog", metadata={"rank": 2, "alpha": 2.0}
    )
    saved = save_concept(
        artifact, tmp_path / "stage 1", "dog", family=backbone.family, base_hash=backbone.content_hash
    )
    return base, saved


def test_a_personalized_model_is_aligned(
    plain: host.Plain, tmp_path: Path, concept: tuple[BaseModel, Concept]
) -> None:
    """Under inference mode, as ComfyUI runs it; the second time the run is found."""
    base, learned = concept
    subject = from_images(torch.rand(2, 32, 32, 3), tmp_path / "photos", class_noun="dog")
    small = {"steps": 1, "batch_size": 2, "denoising_steps": 2, "guidance": 2.0, "rank": 2, "sample_every": 0,
             "images_per_epoch": 2, "images_per_prompt": 1, "rows_per_forward": 2}  # fmt: skip
    inputs = widgets(aligning.Align) | small | {
        "model": AppliedModel(base, ((learned, 1.0),)), "subject": subject, "reward": REWARD,
        "prompts": PromptPool(activities=("jumping",)),
    }  # fmt: skip
    with torch.inference_mode():
        made, model, run, curves, samples = aligning.Align.execute(**inputs).args
        again = aligning.Align.execute(**inputs).args
    assert made.kind == "lora" and [c for c, _ in model.concepts] == [learned, made]
    assert not run.reused and again[2].reused and again[0].sha256 == made.sha256
    assert len(curves["reward"]) == len(curves["loss"]) == 1 and samples.ndim == 4
    assert scoring._sample_prompts(run) == ["a {} jumping"]
    page = scoring.Report.execute(title="Aligned", name="aligned", subject=subject, run=run).args[0]
    assert "InstructBooth" in Path(page).read_text("utf-8")
    with pytest.raises(LikenessError, match="no concept to align"):
        aligning.Align.execute(**inputs | {"model": AppliedModel(base, ())})
