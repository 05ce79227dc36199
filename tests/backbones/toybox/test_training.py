"""Training resumes bit for bit, and the pure pieces do what their docstrings say."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from likeness.backbones.toybox import nets
from likeness.backbones.toybox.card import _average_precision, auc
from likeness.backbones.toybox.training import data, identity, loop, part, tokenizer, unet, vae, workers
from likeness.core.errors import LikenessError
from safetensors.torch import save_file
from torch import Tensor, nn


class _Tiny:
    """A part small enough to train in a blink; Muon and AdamW both have something to do."""

    name = "tiny"
    exported = "tiny.safetensors"

    def __init__(self, steps: int) -> None:
        self.schedule = loop.Schedule(
            steps=steps, batch=4, lr=1e-2, muon_lr=1e-2, warmup=2, save_every=1, log_every=1
        )

    def build(self) -> nn.Module:
        return nn.Sequential(nn.Linear(16, 24), nn.Tanh(), nn.Linear(24, 16))

    def loss(self, model: nn.Module, step: int) -> dict[str, Tensor]:
        x = torch.randn(self.schedule.batch, 16)
        return {"loss": (model(x) - x).square().mean()}

    def export(self, model: nn.Module, weights_dir: Path) -> None:
        weights_dir.mkdir(parents=True, exist_ok=True)
        torch.save(model.state_dict(), weights_dir / "tiny.pt")


def _finish(one: loop.Part, state_dir: Path, stop_after: int | None = None) -> None:
    for progress in loop.run(one, state_dir, state_dir / "weights"):
        if progress.step == stop_after:
            break


def test_a_stopped_training_goes_on_bit_for_bit(tmp_path: Path) -> None:
    _finish(_Tiny(6), tmp_path / "whole")
    _finish(_Tiny(6), tmp_path / "broken", stop_after=3)
    torch.rand(7)  # a neighbour uses the generator
    _finish(_Tiny(6), tmp_path / "broken")
    whole, broken = (torch.load(tmp_path / d / "tiny.pt", weights_only=True) for d in ("whole", "broken"))
    assert whole["step"] == broken["step"] == 6
    for key in ("model", "average"):
        assert all(torch.equal(whole[key][k], broken[key][k]) for k in whole[key])


def test_training_leaves_the_global_generator_alone(tmp_path: Path) -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    _finish(_Tiny(2), tmp_path)
    assert torch.equal(torch.rand(4), expected)


def test_the_learning_rate_rises_and_falls() -> None:
    schedule = loop.Schedule(steps=100, batch=1, lr=1.0, warmup=10, decay=0.5)
    assert schedule.lr_at(0) == pytest.approx(0.1)
    assert schedule.lr_at(30) == pytest.approx(1.0)
    assert schedule.lr_at(100) == pytest.approx(0.01)


def test_orthogonal_makes_all_singular_values_near_one() -> None:
    for shape in ((24, 60), (60, 24)):
        values = torch.linalg.svdvals(loop.orthogonal(torch.randn(shape)))
        assert values.min() > 0.5 and values.max() < 1.3


def test_the_decoder_is_born_knowing_where_a_pixel_is() -> None:
    decoder, seen = vae.new_vae().decoder, {}
    decoder.up_blocks[2].resnets[-1].register_forward_hook(lambda m, a, out: seen.update(out=out))
    with torch.no_grad():
        decoder(torch.randn(1, vae.LATENT_CHANNELS, 8, 8))
    ramp, phase = seen["out"][0, 0, 5], seen["out"][0, 4, 5]
    assert torch.allclose(ramp, torch.arange(1, 33) / 32, atol=0.02)
    assert torch.allclose(phase, torch.tensor([1.0, 0.0]).repeat(16), atol=0.05)


def test_supcon_by_hand() -> None:
    z = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.8, 0.6], [0.8, 0.6]])
    expected = torch.log(1 + 2 * torch.exp(torch.tensor(-2.0)))  # logits 10 and, twice, 8
    assert identity.supcon(z, torch.tensor([0, 0, 1, 1])) == pytest.approx(float(expected), rel=1e-4)
    assert identity.supcon(z, torch.tensor([0, 1, 0, 1])) > 2


def test_overlap_auc_and_precision_by_hand() -> None:
    assert nets.overlap((0, 0, 2, 2), (1, 0, 3, 2)) == pytest.approx(1 / 3)
    assert auc(torch.tensor([2.0, 0.0]), torch.tensor([1.0])) == pytest.approx(0.5)
    assert _average_precision([(0.9, True), (0.8, False), (0.7, True)], 2) == pytest.approx((1 + 2 / 3) / 2)


def test_an_unknown_part_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(LikenessError, match="wings"):
        part("wings", tmp_path)


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> object:
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(tokenizer.train(tmp_path_factory.mktemp("words"), count=1500))


def test_the_tokenizer_gives_back_what_it_took(words: object) -> None:
    for text in ("a photo of a rabbit wearing sunglasses in the snow", "qwerty zebra"):
        tokens = words(text, padding="max_length", max_length=tokenizer.MAX_LENGTH)["input_ids"]  # type: ignore[operator]
        assert len(tokens) == tokenizer.MAX_LENGTH and tokens[-1] == words.eos_token_id  # type: ignore[attr-defined]
        assert words.decode(tokens, skip_special_tokens=True).strip() == text  # type: ignore[attr-defined]


def test_rare_identifiers_and_nouns_are_single_tokens(words: object) -> None:
    for word in (*tokenizer.RARE_WORDS, "rabbit", "umbrella", "sunglasses"):
        assert len(words(word)["input_ids"]) == 3, word  # type: ignore[operator]


def test_one_vae_step_resumes_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = np.random.default_rng(0).integers(0, 255, (4, 64, 64, 3), dtype=np.uint8)
    monkeypatch.setattr(data, "images", lambda *_: pictures)
    states = []
    for run in ("whole", "broken"):
        one = vae.VaePart(tmp_path / run)
        one.schedule = replace(one.schedule, steps=2, batch=2, save_every=1, log_every=1)
        trainer = loop.Trainer(one, one.state_dir)
        trainer.advance()
        if run == "broken":
            trainer.save()
            trainer = loop.Trainer(one, one.state_dir)
        trainer.advance()
        states.append(trainer.model.state_dict())
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])


def _small_vae_part(state_dir: Path, batch: int) -> vae.VaePart:
    state_dir.mkdir(exist_ok=True)
    pictures = np.random.default_rng(0).integers(0, 255, (4, 64, 64, 3), dtype=np.uint8)
    np.save(state_dir / "pictures-4.npy", pictures)
    one = vae.VaePart(state_dir, num_pictures=4)
    one.schedule = replace(one.schedule, steps=1, batch=batch, save_every=1, log_every=1)
    return one


def test_two_workers_take_the_mean_of_their_gradients(tmp_path: Path) -> None:
    one = workers.shared(_small_vae_part(tmp_path / "two", batch=2), 2)
    assert one.schedule.batch == 1
    with workers.team(2, partial(_finish, one, one.state_dir)):
        _finish(one, one.state_dir)
    together = torch.load(one.state_dir / "vae.pt", weights_only=True)["model"]

    trainer = loop.Trainer(one, tmp_path / "by_hand")
    for rank in (0, 1):
        with loop._seeded(one.schedule.seed, rank):
            (one.loss(trainer.model, rank)["loss"] / 2).backward()
    nn.utils.clip_grad_norm_(list(trainer.trained.values()), one.schedule.clip)
    trainer.optimizer.param_groups[0]["lr"] = trainer.optimizer.param_groups[1]["lr"] = one.schedule.lr_at(0)
    trainer.optimizer.step()
    trainer.muon.step(one.schedule.lr_at(0, one.schedule.muon_lr), one.schedule.weight_decay)
    for key, value in trainer.model.state_dict().items():
        assert torch.allclose(value, together[key], atol=1e-5), key


def test_the_decoder_goes_on_alone_and_leaves_the_latents_as_they_are(tmp_path: Path) -> None:
    _small_vae_part(tmp_path, batch=2)
    vae.new_vae().save_pretrained(tmp_path / "weights" / "vae")
    one = vae.DecoderPart(tmp_path, num_pictures=4)
    one.schedule = replace(one.schedule, steps=1, batch=2, warmup=1)
    trainer = loop.Trainer(one, tmp_path)
    assert str(tmp_path) not in trainer.model.to_json_string()  # its folder is nobody else's business
    before = {k: v.clone() for k, v in trainer.model.state_dict().items()}
    assert trainer.advance()["psnr"] > 0
    changed = {k for k, v in trainer.model.state_dict().items() if not torch.equal(v, before[k])}
    assert changed and all(k.startswith(("decoder.", "post_quant_conv.")) for k in changed)


def test_a_batch_that_cannot_be_shared_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(LikenessError, match="cannot share"):
        workers.shared(_small_vae_part(tmp_path, batch=3), 2)


def test_a_training_begins_from_the_weights_that_fit(tmp_path: Path) -> None:
    given = nn.Sequential(nn.Linear(16, 24), nn.Tanh(), nn.Linear(24, 5))  # its last layer does not fit
    save_file({f"text_model.{k}": v for k, v in given.state_dict().items()}, tmp_path / "tiny.safetensors")
    fresh, warm = loop.Trainer(_Tiny(1), tmp_path), loop.Trainer(_Tiny(1), tmp_path, start_from=tmp_path)
    assert torch.equal(warm.model[0].weight, given[0].weight)
    assert torch.equal(warm.average["0.weight"], given[0].weight)
    assert torch.equal(warm.model[2].weight, fresh.model[2].weight)


def test_timesteps_are_one_from_each_stretch() -> None:
    steps = unet.stratified_timesteps(10, 1000)
    assert [int(t) // 100 for t in steps] == list(range(10))
    assert not torch.equal(steps, unet.stratified_timesteps(10, 1000))


def test_empty_scenes_are_shown_at_every_timestep(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Timesteps rise with a batch's rows: scenes in its first ones would be learned at the lowest alone."""
    trained, shown = unet.UnetPart(tmp_path), []
    trained.latents, trained.rows = torch.zeros(4, 2), np.zeros(4, int)
    trained.states, trained.empty = np.zeros((1, 1, 1), np.float16), torch.zeros(1, 1)
    trained.scene_latents, trained.scene_states = torch.ones(4, 2), torch.zeros(4, 1, 1)
    trained.alphas = torch.ones(1)
    monkeypatch.setattr(unet, "diffusion_loss", lambda model, z, text, alphas: shown.append(z) or {})
    for step in range(20):
        trained.loss(torch.nn.Identity(), step)
    rows = torch.cat([(z[:, 0] == 1).nonzero().flatten() for z in shown])
    assert len(rows) == 20 * round(unet.SCENE_SHARE * 64) and rows.max() > 48 and rows.min() < 16
