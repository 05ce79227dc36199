"""Alignment on the tiny pipeline: its sanity, its gradients, and runs that were disturbed."""

import itertools
import json
import math
from dataclasses import fields, replace
from types import SimpleNamespace

import pytest
import torch
from likeness.backbones import open_backbone
from likeness.concepts.loading import load_tensors
from likeness.core.errors import LikenessError
from likeness.core.randomness import normal
from likeness.scoring.metrics import strip_identifier
from likeness.scoring.rewards import CombinedSpec, Part, RewardSpec
from likeness.subjects.prompt_pool import PromptPool
from likeness.trainers import align, dreambooth, reward_gradient
from likeness.trainers import policy_gradient as pg
from likeness.trainers.align import Align, AlignConfig, train_align
from likeness.trainers.dreambooth import DreamBooth, DreamBoothConfig, train_dreambooth
from likeness.trainers.events import AlignmentScore, Done, Phase, Rollout, Step
from likeness.trainers.guard import IdentityGuard
from likeness.trainers.personalized import Personalized, about_of, guided
from likeness.trainers.prior import PriorPreservation
from likeness.trainers.reward_gradient import RewardGradientConfig, train_reward_gradient

REWARD = RewardSpec(name="clip_t")
POOL = PromptPool(activities=("playing", "sitting"), unseen=("standing",))
SMALL = {
    "steps": 4, "denoising_steps": 3, "images_per_epoch": 4, "images_per_prompt": 2, "batch_size": 2,
    "rows_per_forward": 2, "rollout_batch": 4, "guidance": 3.0, "learning_rate": 1e-2, "rank": 2,
    "alpha": 2.0, "checkpoint_every": 2, "clip": 1e-2, "min_count": 2,
}  # fmt: skip
GUARD = IdentityGuard(every=2, steps=2, images_per_prompt=1, max_drop=9.0)


@pytest.fixture(scope="module")
def judges(encoders):
    """The tiny encoders, with what a run's key asks for."""
    for name, encoder in vars(encoders).items():
        encoder.id = encoder.label = encoder.weights_hash = f"tiny {name}"
    return encoders


@pytest.fixture(scope="module")
def concept(base, subject, tmp_path_factory, finish):
    """A personalized model."""
    config = DreamBoothConfig(steps=1, batch_size=1, rank=2, learning_rate=1e-2)
    return finish(
        train_dreambooth(base, subject, config, runs_root=tmp_path_factory.mktemp("stage1"))
    ).concept


@pytest.fixture(scope="module")
def run(base, subject, judges, concept):
    def events(root, *, seed=0, reward=REWARD, pool=POOL, guard=None, **changes):
        return train_align(
            base, subject, AlignConfig(**{**SMALL, **changes}),
            concepts=[(concept, 1.0)], pool=pool, reward=reward, runs_root=root,
            seed=seed, guard=guard, encoders=judges,
        )  # fmt: skip

    return events


@pytest.fixture(scope="module")
def method(base, subject, judges, concept):
    """An ``Align`` at work, after its first rollout; closed at the end."""
    made = []

    def make(**changes):
        config = AlignConfig(**{**SMALL, **changes})
        personalized = Personalized(concepts=((concept, 1.0),))
        about = about_of(base, subject, personalized, judges, ())
        one = Align(
            open_backbone(base), personalized, config,
            reward=REWARD, pool=POOL, about=about, warden=None, seed=0,
        )  # fmt: skip
        made.append(one)
        for _ in itertools.chain(one.prepare(), one.collect(0)):
            pass
        return one

    yield make
    for one in made:
        one.close()


def test_sdxl_is_aligned_too(bases, subject, judges, tmp_path, finish):
    """Two text encoders and a pooled state, through rollouts, guidance and updates."""
    base, config = bases["sdxl"], DreamBoothConfig(steps=1, batch_size=1, rank=2, learning_rate=1e-2)
    concept = finish(train_dreambooth(base, subject, config, runs_root=tmp_path)).concept
    events = train_align(
        base, subject, AlignConfig(**SMALL), concepts=[(concept, 1.0)], pool=POOL, reward=REWARD,
        runs_root=tmp_path, encoders=judges,
    )  # fmt: skip
    steps = [event for event in events if isinstance(event, (Step, Done))]
    assert isinstance(steps[-1], Done) and len(steps) == SMALL["steps"] + 1
    assert steps[-1].concept.family == "sdxl"
    tensors = load_tensors(steps[-1].concept)
    assert all(t.any() for name, t in tensors.items() if name.endswith("lora_B"))


# --- sanity --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rows", "within"), [(2, 1e-6), (1, 1e-5), (6, 1e-5)])
def test_the_first_updates_ratio_is_one(method, rows, within):
    """To the last bits of a forward: of one shape in rollout and update, or of two."""
    one = method(rows_per_forward=rows, rollout_batch=2)
    terms = [one.loss(one.batch(n)).terms for n in range(one.config.accumulation)]
    assert max(float(t["approx_kl"]) for t in terms) < 0.5 * within**2
    assert all(float(t["clip_fraction"]) == 0 for t in terms)
    one.close()


def naive_gradients(one):
    """One DDPO update, written as its loop is: sample after sample, step after step, scalar autograd."""
    epoch, config, schedule = one.epoch, one.config, one.backbone.schedule
    pairs = [p for n in range(config.accumulation) for p in zip(*vars(one.batch(n)).values(), strict=True)]
    losses = []
    for row, n in pairs:
        x, after, t = epoch.latents[row, n][None], epoch.latents[row, n + 1][None], one.grid[n]
        prompt = one.prompts[epoch.prompts[row]].text
        text, empty = (one.backbone.encode_prompts([words]) for words in (prompt, ""))
        with_text = one.backbone.predict(x, torch.tensor([t]), text)
        without = one.backbone.predict(x, torch.tensor([t]), empty)
        eps = without + config.guidance * (with_text - without)
        abar = schedule.abar[t].double()
        before = t - 1000 // config.denoising_steps
        abar_before = schedule.abar[before].double() if before >= 0 else torch.tensor(schedule.final_abar)
        sigma = config.eta * ((1 - abar_before) / (1 - abar) * (1 - abar / abar_before)).sqrt()
        x0 = (x - (1 - abar).sqrt() * eps) / abar.sqrt()
        mu = abar_before.sqrt() * x0 + (1 - abar_before - sigma**2).sqrt() * eps
        logp = -((after - mu) ** 2) / (2 * sigma**2) - sigma.log() - 0.5 * math.log(2 * math.pi)
        ratio, advantage = (logp.mean() - epoch.log_probs[row, n]).exp(), epoch.advantages[row]
        bounded = ratio.clamp(1 - config.clip, 1 + config.clip)
        losses.append(-torch.minimum(advantage * ratio, advantage * bounded))
    parameters = list(one.parameters().values())
    return torch.autograd.grad(torch.stack(losses).mean(), parameters)


def test_gradients_equal_a_naive_transcription(method):
    one = method(rows_per_forward=3)
    for p in one.parameters().values():
        p.data.add_(1e-3 * normal(p.shape, 1, "away from the start"))  # ratios other than 1, some clipped
    for n in range(one.config.accumulation):
        (one.loss(one.batch(n)).total / one.config.accumulation).backward()
    ours = [p.grad.clone() for p in one.parameters().values()]
    theirs = naive_gradients(one)
    scale = max(float(g.abs().max()) for g in theirs)
    furthest = max(float((a - b).abs().max()) for a, b in zip(ours, theirs, strict=True))
    assert furthest < 1e-5 and furthest < 1e-4 * scale
    one.close()


def test_the_penalty_is_zero_at_the_start_and_grows(method):
    for penalty in ("transition", "prediction"):
        one = method(penalty=penalty, kl_weight=0.1)
        assert float(one.loss(one.batch(0)).terms["kl"].detach()) < 1e-10
        for p in one.parameters().values():
            p.data.add_(0.1)
        terms = one.loss(one.batch(0))
        assert float(terms.terms["kl"].detach()) > 1e-6
        assert torch.isclose(terms.total, terms.terms["policy"] + 0.1 * terms.terms["kl"])
        one.close()


def test_every_transition_of_an_epoch_is_learned_from_once(method):
    one = method()
    updates = one.config.updates_per_epoch * one.config.accumulation
    pairs = [p for n in range(updates) for p in zip(*vars(one.batch(n)).values(), strict=True)]
    assert sorted(pairs) == sorted(itertools.product(range(4), range(3)))
    one.close()


# --- runs ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def events(run, tmp_path_factory):
    """Of a run in peace."""
    return list(run(tmp_path_factory.mktemp("runs"), guard=GUARD))


@pytest.fixture(scope="module")
def reference(events):
    return events[-1]


def test_a_run_gives_a_lora_on_its_concept(reference, concept):
    made = reference.concept
    assert made.kind == "lora" and made.trigger == concept.trigger == "sks fish"
    assert made.metadata["on_concepts"] == [[concept.sha256, 1]]


def test_the_curves_have_both_kinds_of_prompt(events):
    rollouts = [e for e in events if isinstance(e, Rollout)]
    steps = [e for e in events if isinstance(e, Step)]
    looks = [e for e in events if isinstance(e, AlignmentScore)]
    assert [e.step for e in rollouts] == [0, 2] and len(steps) == 4
    assert all(None not in (e.with_identifier, e.without_identifier) for e in rollouts)
    assert {"reward", "reward with identifier", "clip_fraction", "approx_kl"} <= set(steps[0].terms)
    assert [e.step for e in looks] == [0, 2, 4] and looks[0].verdict == "before alignment"
    assert isinstance(events[-1], Done)


@pytest.mark.parametrize("stop_at", ["rollout", "update", "boundary"])
def test_kill_and_resume_is_exact(run, tmp_path, reference, fingerprint, finish, monkeypatch, stop_at):
    """As ``kill -9``: nothing is saved on the way out."""
    events = run(tmp_path, guard=GUARD)
    moments = {
        "rollout": lambda e, seen: isinstance(e, Phase) and e.name == "rollout" and e.done == 2 and seen == 1,
        "update": lambda e, seen: isinstance(e, Step) and e.step == 3,
        "boundary": lambda e, seen: isinstance(e, Step) and e.step == 2,
    }
    seen = 0
    with monkeypatch.context() as patch:
        for event in events:
            seen += isinstance(event, Rollout)
            if moments[stop_at](event, seen):
                patch.setattr("likeness.trainers.loop.Loop.save", lambda self: None)
                events.close()
                break
        else:
            raise AssertionError("the run ended before")
    assert fingerprint(finish(run(tmp_path, guard=GUARD)).run_folder) == fingerprint(reference.run_folder)


@pytest.mark.parametrize("step", [1, 3])
def test_interrupt_and_resume_is_exact(run, tmp_path, reference, fingerprint, finish, stop_after, step):
    stop_after(run(tmp_path, guard=GUARD), step)
    again = list(run(tmp_path, guard=GUARD))
    assert next(e.step for e in again if isinstance(e, Step)) == step + 1  # an interrupt loses nothing
    assert sum(isinstance(e, Rollout) for e in again) == (1 if step == 1 else 0)  # nor an epoch's pictures
    assert fingerprint(finish(again).run_folder) == fingerprint(reference.run_folder)


def test_the_base_model_is_as_it_was(run, base, tmp_path, stop_after):
    unet = open_backbone(base).module("unet")
    before = {name: p.detach().clone() for name, p in unet.named_parameters()}
    stop_after(run(tmp_path), 1)
    assert all(torch.equal(p, before[name]) for name, p in unet.named_parameters())
    assert not any(module._forward_hooks for module in unet.modules())


def test_an_update_makes_good_pictures_likelier(method):
    """Downhill in the loss, advantages times log-probabilities rise."""

    def worth(one):
        with torch.no_grad():
            return sum(-float(one.loss(one.batch(n)).total) for n in range(one.config.accumulation))

    for surrogate in ("score_function", "clipped"):
        one = method(surrogate=surrogate, clip=0.5)
        before = worth(one)
        for n in range(one.config.accumulation):
            one.loss(one.batch(n)).total.backward()
        for p in one.parameters().values():
            p.data.sub_(1e-2 * p.grad)
        assert worth(one) > before
        one.close()


# --- bad input -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"eta": 0.0}, "eta"),
        ({"batch_size": 3}, "batch_size"),
        ({"images_per_prompt": 3}, "images_per_prompt"),
        ({"rows_per_forward": 4}, "rows_per_forward"),
        ({"penalty": "transition"}, "kl_weight"),
        ({"kl_weight": 1.0}, "kl_weight"),
        ({"surrogate": "other"}, "surrogate"),
        ({"guidance": 0.5}, "guidance"),
    ],
)
def test_settings_that_cannot_be(changes, named):
    with pytest.raises(LikenessError, match=named):
        AlignConfig(**{**SMALL, **changes})


@pytest.mark.parametrize(
    ("score", "message"),
    [
        (lambda images: torch.full((len(images),), float("nan")), "nan"),
        (lambda images: torch.zeros(len(images) + 1), "shape"),
    ],
)
def test_rewards_that_are_none_stop_the_run(run, tmp_path, monkeypatch, score, message):
    class Broken(SimpleNamespace):
        def __call__(self, images, prompts):
            return score(images)

    monkeypatch.setattr(align, "open_reward", lambda spec, about: Broken(label="broken"))
    with pytest.raises(LikenessError, match=message):
        list(run(tmp_path))
    assert not list(tmp_path.glob("*/done.json"))


def test_a_constant_reward_is_said_and_teaches_nothing(run, tmp_path, monkeypatch, caplog, finish):
    monkeypatch.setattr(align, "open_reward", lambda spec, about: Constant(label="constant"))
    done = finish(run(tmp_path, steps=2, weight_decay=0.0))
    assert "nothing can be learned" in caplog.text and done.best_step == 2


class Constant(SimpleNamespace):
    def __call__(self, images, prompts):
        return torch.ones(len(images))


def test_a_group_of_one_is_said_and_compared_with_the_epoch(method, caplog):
    one = method(advantage="group", images_per_prompt=1)
    assert "Groups of one picture have no spread" in caplog.text
    advantages_N = one.epoch.advantages
    assert bool(advantages_N.isfinite().all()) and float(advantages_N.std()) > 0.5
    one.close()


def test_a_bare_model_has_nothing_to_align(base, subject, judges, tmp_path):
    with pytest.raises(LikenessError, match="no concept"):
        list(train_align(base, subject, AlignConfig(**SMALL), concepts=[], pool=POOL, runs_root=tmp_path))


def test_a_concept_of_another_base_is_refused(subject, judges, concept, tmp_path, make_tiny_pipeline, finish):
    from likeness.backbones.base import BaseModel

    other = BaseModel(source=str(make_tiny_pipeline(tmp_path / "other", seed=9)), device="cpu")
    events = train_align(
        other, subject, AlignConfig(**SMALL), concepts=[(concept, 1.0)], pool=POOL, reward=REWARD,
        runs_root=tmp_path / "runs", encoders=judges,
    )  # fmt: skip
    with pytest.raises(LikenessError, match="another base model"):
        list(events)


def test_what_decides_the_result_is_in_the_key(run, tmp_path, reference, finish):
    """Pool, reward and concepts make another run; the same ones find it again."""
    root = reference.run_folder.parent
    assert finish(run(root, guard=GUARD)).reused
    other = PromptPool(activities=("playing",))
    names = {
        finish(run(tmp_path, steps=1, **changes)).run_folder.name
        for changes in ({}, {"pool": other}, {"reward": CombinedSpec(parts=(Part(reward=REWARD),))})
    }
    assert len(names) == 3


def test_log_probs_equal_the_k_diffusion_form_up_to_a_constant(base):
    """Euler ancestral in x / sqrt(abar), sigma = sqrt((1 - abar) / abar): the noise of ComfyUI's sampler."""
    schedule, steps, eta = open_backbone(base).schedule, 10, 0.7
    x, eps, other, after = (normal((3, 4, 8, 8), 0, name) for name in ("x", "eps", "other", "after"))
    t_B = torch.tensor([901, 401, 1])
    abar = schedule.abar[t_B].double()
    later = torch.tensor([schedule.abar[801], schedule.abar[301], schedule.final_abar]).double()
    s, s_next = (((1 - a) / a).sqrt() for a in (abar, later))
    up = eta * (s_next**2 * (s**2 - s_next**2) / s**2).sqrt()
    down = (s_next**2 - up**2).sqrt()

    def k_form(out):
        view = (-1, 1, 1, 1)
        mean = x / abar.sqrt().view(view) + (down - s).view(view) * out
        squares = (after / later.sqrt().view(view) - mean) ** 2 / (2 * up.view(view) ** 2)
        return (-squares - up.log().view(view)).flatten(1).mean(1)

    ours = [pg.log_prob(after, *schedule.transition(x, out, t_B, steps, eta=eta)) for out in (eps, other)]
    theirs = [k_form(out.double()) for out in (eps, other)]
    assert torch.allclose((ours[0] - ours[1]).double(), theirs[0] - theirs[1], rtol=1e-4)
    constant = ours[0].double() - theirs[0]
    expected = -0.5 * torch.log(torch.tensor(2 * torch.pi)) - later.sqrt().log()
    assert torch.allclose(constant, expected, atol=1e-3)


def test_rollouts_and_updates_share_one_guidance(method, base):
    one = method()
    x = normal((2, 4, 8, 8), 0, "x")
    from likeness.trainers.data import pick

    text, t = pick(one.texts, [0, 1]), torch.tensor([500, 500])
    plain = one.backbone.predict(x, t, text)
    empty = one.backbone.predict(x, t, pick(one.negative, [0, 0]))
    assert torch.allclose(guided(one.backbone, x, t, text, one.negative, 1.0), plain)
    both = guided(one.backbone, x, t, text, one.negative, 3.0)
    assert torch.allclose(both, empty + 3 * (plain - empty), atol=1e-5)
    one.close()


# --- by the reward's gradient --------------------------------------------------------------------------

GRADIENT = {"steps": 2, "batch_size": 2, "denoising_steps": 3, "guidance": 2.0, "rank": 2, "alpha": 2.0,
            "learning_rate": 1e-2, "window": 2, "last_steps": 2, "checkpoint_every": 1}  # fmt: skip


class Brightness(SimpleNamespace):
    id = label = weights_hash = "brightness"
    differentiable = True

    def __call__(self, images, prompts):
        return images.mean(dim=(1, 2, 3))


@pytest.fixture
def by_gradient(base, subject, judges, concept, monkeypatch):
    monkeypatch.setattr(reward_gradient, "open_reward", lambda spec, about: Brightness())

    def events(root, **changes):
        return train_reward_gradient(
            base, subject, RewardGradientConfig(**{**GRADIENT, **changes}),
            concepts=[(concept, 1.0)], pool=POOL, reward=REWARD, runs_root=root, encoders=judges,
        )  # fmt: skip

    return events


def test_the_rewards_gradient_raises_it(by_gradient, tmp_path):
    events = by_gradient(tmp_path, steps=8, dreambooth_weight=0.0, reward_weight=10.0)
    rewards = [e.terms["reward"] for e in events if isinstance(e, Step)]
    assert sum(rewards[-3:]) > sum(rewards[:3])


def test_refl_learns_at_one_late_step_and_resumes_exactly(
    by_gradient, tmp_path, fingerprint, finish, stop_after
):
    changes = {"kind": "refl", "steps": 2}
    whole = finish(by_gradient(tmp_path / "whole", **changes))
    stop_after(by_gradient(tmp_path / "parts", **changes), 1)
    parts = finish(by_gradient(tmp_path / "parts", **changes))
    assert fingerprint(parts.run_folder) == fingerprint(whole.run_folder)
    assert (
        "denoising" in json.loads((whole.run_folder / "history.jsonl").read_text().splitlines()[0])["terms"]
    )


def test_a_reward_without_gradient_is_refused(by_gradient, tmp_path, monkeypatch):
    monkeypatch.setattr(Brightness, "differentiable", False)
    with pytest.raises(LikenessError, match="no gradient"):
        list(by_gradient(tmp_path))


@pytest.mark.parametrize(
    "wrong", [{"last_steps": 4}, {"kind": "refl", "window": 4}, {"kind": "other"}, {"reward_weight": 0.0}]
)
def test_gradient_settings_that_cannot_be(wrong):
    with pytest.raises(LikenessError):
        RewardGradientConfig(**{**GRADIENT, **wrong})


@pytest.mark.parametrize("unused", [{"kind": "draft", "window": 10}, {"kind": "refl", "last_steps": 10}])
def test_a_kinds_unused_setting_does_not_limit_the_steps(unused):
    assert RewardGradientConfig(**{**GRADIENT, **unused}).denoising_steps == 3


# --- presets -------------------------------------------------------------------------------------------


def test_the_papers_values():
    stage_2, stage_1 = AlignConfig.paper(), DreamBoothConfig.instructbooth()
    assert (stage_2.images_per_epoch, stage_2.batch_size, stage_2.denoising_steps) == (16, 8, 50)
    assert (stage_2.guidance, stage_2.clip, stage_2.learning_rate) == (7.5, 1e-4, 2e-5)
    assert (stage_1.train, stage_1.learning_rate, stage_1.batch_size) == ("unet", 2e-5, 1)
    for stage in (stage_1, stage_2):
        assert (stage.adam_beta1, stage.adam_beta2, stage.weight_decay) == (0.9, 0.99, 0.01)
    assert stage_2.accumulation == 50 and stage_2.updates_per_epoch == 2
    assert set(align.LEFT_OPEN) <= {field.name for field in fields(AlignConfig)}
    assert set(dreambooth.LEFT_OPEN) <= {field.name for field in fields(DreamBoothConfig)}
    assert PriorPreservation().num_images == 200 and stage_1.prompt == "a {}" and stage_1.use_description


@pytest.mark.parametrize("make", [AlignConfig.dpok, AlignConfig.practical, RewardGradientConfig.refl])
def test_every_preset_is_possible(make):
    assert make().steps > 0
    assert RewardGradientConfig.practical("sd1") == RewardGradientConfig()
    assert AlignConfig.practical("sd1").rows_per_forward == 2


@pytest.mark.parametrize(
    ("description", "told", "trigger"),
    [("striped", True, "sks striped fish"), ("striped", False, "sks fish"), ("", True, "sks fish")],
)
def test_a_description_stands_before_the_class(base, subject, tmp_path, description, told, trigger):
    config = DreamBoothConfig.instructbooth(use_description=told)
    odd = replace(subject, description=description)
    one = DreamBooth(open_backbone(base), odd, config, seed=0, prior=None, base=base, runs_root=tmp_path)
    assert one.trigger == trigger and one.instance_prompt(0) == f"a {trigger}"
    assert strip_identifier(f"a {trigger} playing", trigger, "fish") == "a fish playing"
