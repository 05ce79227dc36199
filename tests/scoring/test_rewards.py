"""Rewards: one signature, gradients, strict checkpoints, and what happens when files are missing."""

import math
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from likeness.core.errors import LikenessError
from likeness.nodes.rewards import REWARDS
from likeness.scoring.encoders import Preprocessing
from likeness.scoring.rewards import (
    About,
    CombinedSpec,
    Part,
    RewardSpec,
    checked_scores,
    open_reward,
    reward_hash,
    score_stream,
)
from likeness.scoring.rewards import image_reward as ir
from likeness.scoring.rewards.clip_family import AESTHETIC_HEAD, Identity, aesthetic_head
from likeness.scoring.rewards.combined import Combined, combine
from likeness.scoring.rewards.opening import KINDS
from likeness.scoring.rewards.reward import NetReward

ABOUT = About(family="toybox", trigger="sks fish", class_noun="fish")


class Fixed(SimpleNamespace):
    """A reward that gives what it was told to."""

    id = label = weights_hash = "fixed"
    differentiable = True

    def __call__(self, images, prompts):
        return self.scores


# --- ImageReward ---------------------------------------------------------------------------------------

VISION = {**ir.VISION, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
          "num_attention_heads": 4, "image_size": 32}  # fmt: skip
TEXT = {**ir.TEXT, "vocab_size": 120, "hidden_size": 24, "encoder_hidden_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 2, "intermediate_size": 48,
        "bos_token_id": 1, "sep_token_id": 3, "eos_token_id": 3}  # fmt: skip


@pytest.fixture(scope="module")
def net():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return ir.ImageRewardNet(VISION, TEXT).eval().requires_grad_(False)


def released(net):
    """The net's weights under the names of the authors' module tree, with what their file has besides."""
    state = {}
    for name, tensor in net.state_dict().items():
        if name.endswith("position_ids"):
            continue
        key = name.replace("text.", "blip.text_encoder.", 1) if name.startswith("text.") else name
        if name.startswith("head."):
            place, leaf = name.split(".")[1:]
            key = f"mlp.layers.{ir.HEAD_PLACES[int(place)]}.{leaf}"
        for ours, theirs in (
            ("vision.embeddings.class_embedding", "blip.visual_encoder.cls_token"),
            ("vision.embeddings.position_embedding", "blip.visual_encoder.pos_embed"),
            ("vision.embeddings.patch_embedding", "blip.visual_encoder.patch_embed.proj"),
            ("vision.encoder.layers", "blip.visual_encoder.blocks"),
            ("vision.post_layernorm", "blip.visual_encoder.norm"),
            ("layer_norm", "norm"),
            ("self_attn.qkv", "attn.qkv"),
            ("self_attn.projection", "attn.proj"),
        ):
            if name.startswith("vision."):
                key = key.replace(ours, theirs)
        state[key] = tensor.clone()
    return state | {
        "blip.text_encoder.embeddings.position_ids": torch.arange(512)[None],
        "blip.vision_proj.weight": torch.zeros(2, 2),
        "blip.text_proj.bias": torch.zeros(2),
    }


def test_a_released_checkpoint_goes_in_whole(net):
    other = ir.ImageRewardNet(VISION, TEXT)
    found = ir.load_weights(other, released(net))
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name
    assert len(found.unused) == 3 and all(found.unused.values())
    assert len(set(found.names.values())) == len(found.names)  # one to one


def test_a_missing_and_an_unknown_tensor_are_named(net):
    state = released(net)
    gone = "blip.visual_encoder.blocks.1.attn.qkv.bias"
    state["blip.other"] = state.pop(gone)
    with pytest.raises(LikenessError, match=r"qkv\.bias.*blip\.other"):
        ir.load_weights(ir.ImageRewardNet(VISION, TEXT), state)
    with pytest.raises(LikenessError, match="shape"):
        state = released(net)
        state[gone] = torch.zeros(3)
        ir.load_weights(ir.ImageRewardNet(VISION, TEXT), state)


def test_the_released_sizes_are_the_papers():
    """On the meta device: 1.8 GB of weights are not made."""
    with torch.device("meta"):
        full = ir.ImageRewardNet()
    shapes = {name: tuple(t.shape) for name, t in full.state_dict().items()}
    assert shapes["vision.embeddings.position_embedding"] == (1, 197, 1024)
    assert shapes["text.encoder.layer.11.crossattention.self.key.weight"] == (768, 1024)
    assert shapes["head.4.weight"] == (1, 16)
    assert full.text.config.num_attention_heads == 12 and full.vision.config.layer_norm_eps == 1e-6
    assert 440e6 < sum(p.numel() for p in full.parameters()) < 450e6


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    path = tmp_path_factory.mktemp("bert") / "vocab.txt"
    letters = [chr(n) for n in range(97, 123)]
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        "cat",
        "dog",
        *letters,
        *(f"##{c}" for c in letters),
    ]
    path.write_text("\n".join(words))
    return ir.tokenizer(path)


def test_prompts_are_read_from_cls_to_35(tokens):
    words = tokens(["a cat"], padding="max_length", truncation=True, max_length=ir.LENGTH)
    assert words["input_ids"][0][:4] == [2, 7, 5, 3] and len(words["input_ids"][0]) == 35
    assert sum(words["attention_mask"][0]) == 4


def test_the_score_reads_all_words_and_no_padding(net, tokens):
    reward = ir.reward_of(net, tokens, weights_hash="", device="cpu", batch_size=2)
    reward.prepare = Preprocessing(resize=32, crop=32)
    images = torch.rand(3, 3, 32, 32)
    alone = reward(images[:1], ["a cat"])
    together = reward(images, ["a cat", "a dog and a cat and more", "b"])
    assert torch.allclose(alone[0], together[0], atol=1e-5)
    assert not torch.allclose(
        reward(images[:1], ["a cat b"]), alone, atol=1e-6
    )  # bidirectional: [CLS] sees it
    raw = net.head[-1].bias  # the head is linear: standardising is all that follows
    assert alone.isfinite().all() and raw.shape == (1,)


def test_gradients_reach_the_picture(net, tokens):
    reward = ir.reward_of(net, tokens, weights_hash="", device="cpu", batch_size=2)
    reward.prepare = Preprocessing(resize=32, crop=32)
    images = torch.rand(2, 3, 48, 32, requires_grad=True)
    reward(images, ["a cat", "a dog"]).sum().backward()
    assert images.grad.abs().sum() > 0
    assert not any(p.grad is not None for p in net.parameters())


def test_tensor_pixels_are_near_pils():
    prepare = Preprocessing(resize=24, crop=20, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
    images = torch.nn.functional.interpolate(torch.rand(2, 3, 8, 9), size=(48, 60), mode="bilinear")
    assert (prepare(images) - prepare.differentiable(images)).abs().mean() < 1e-2


# --- the others ----------------------------------------------------------------------------------------


def test_toyboxs_preference_prefers_the_right_picture():
    from likeness.backbones.toybox import captions
    from likeness.backbones.toybox.training.preference import pair
    from likeness.benchmarks.learning import rendered

    pairs = [pair(n, "eval") for n in range(24)]
    reward = open_reward(RewardSpec(), ABOUT)
    texts = [captions.caption(better) for better, _ in pairs]
    better, worse = (
        checked_scores(reward, rendered([p[side] for p in pairs]).permute(0, 3, 1, 2), texts)
        for side in (0, 1)
    )
    assert (better > worse).float().mean() > 0.6


def test_the_identifier_is_not_read():
    seen = []

    def net(pixels, prompts):
        seen.extend(prompts)
        return pixels.mean(dim=(1, 2, 3))

    plain = NetReward(
        id="n", label="n", weights_hash="", prepare=Preprocessing(resize=8, crop=8), net=net, device="cpu"
    )
    from likeness.scoring.rewards.opening import WithoutIdentifier

    reward = WithoutIdentifier(reward=plain, trigger="sks fish", class_noun="fish")
    reward(torch.rand(2, 3, 8, 8), ["a sks fish jumping", "a fish jumping"])
    assert seen == ["a fish jumping"] * 2


def test_identity_asks_only_of_the_subject():
    encoder = SimpleNamespace(id="i", label="DINO", weights_hash="", encode=lambda x: torch.eye(4)[: len(x)])
    identity = Identity(encoder=encoder, photos_MD=torch.eye(4)[:2], trigger="sks fish")
    scores = identity(torch.rand(3, 3, 8, 8), ["a SKS fish", "a fish", "a sks fish"])
    assert scores.tolist() == pytest.approx([0.5, 1.0, 0.0])


def test_memory_holds_one_batch():
    sizes, given = [], 0

    class Counting(Fixed):
        def __call__(self, images, prompts):
            sizes.append(given - sum(sizes))
            return images.mean(dim=(1, 2, 3))

    def pairs():
        nonlocal given
        for n in range(10):
            given += 1
            yield torch.full((3, 4, 4), n / 10), "a"

    scores = list(score_stream(Counting(), pairs(), batch_size=4))
    assert sizes == [4, 4, 2] and scores == pytest.approx([n / 10 for n in range(10)])


@pytest.mark.parametrize("scores", [torch.zeros(3), torch.tensor([0.0, math.nan]), torch.zeros(2, 1)])
def test_scores_that_are_none(scores):
    with pytest.raises(LikenessError):
        checked_scores(Fixed(scores=scores), torch.rand(2, 3, 4, 4), ["a", "b"])


def test_every_picture_has_a_prompt():
    reward = open_reward(RewardSpec(), ABOUT)
    for count, prompts in ((2, ["a"]), (0, [])):
        with pytest.raises(LikenessError, match="one prompt for each picture"):
            reward(torch.rand(count, 3, 64, 64), prompts)


# --- several as one ------------------------------------------------------------------------------------


def spec(normalise, *parts):
    return CombinedSpec(parts=tuple(Part(reward=RewardSpec(), **part) for part in parts), normalise=normalise)


def test_combining_by_hand():
    a, b = torch.tensor([1.0, 3.0]), torch.tensor([10.0, 20.0])
    assert combine([a, b], spec("none", {"weight": 2.0}, {"weight": -0.1})).tolist() == pytest.approx([1, 4])
    fixed = spec("fixed", {"mean": 1.0, "std": 2.0}, {"weight": 0.0})
    assert combine([a, b], fixed).tolist() == pytest.approx([0, 1], abs=1e-5)
    batch = combine([a, b], spec("batch", {}, {"weight": 0.5}))
    assert batch.tolist() == pytest.approx([-1.5, 1.5], abs=1e-4)


def test_a_floor_costs_what_is_missing():
    a, b = torch.tensor([1.0, 3.0]), torch.tensor([0.6, 0.8])
    floor = spec("none", {}, {"weight": 0.0, "floor": 0.7, "floor_weight": 10.0})
    assert combine([a, b], floor).tolist() == pytest.approx([0, 3], abs=1e-5)


def test_a_constant_part_adds_nothing():
    a, b = torch.tensor([1.0, 3.0]), torch.ones(2)
    alone = combine([a], spec("batch", {}))
    assert torch.allclose(combine([a, b], spec("batch", {}, {})), alone)


def test_combined_is_a_reward():
    parts = [Fixed(scores=torch.tensor([1.0, 2.0])), Fixed(scores=torch.tensor([4.0, 0.0]))]
    parts[1].differentiable = False
    both = Combined(spec("none", {}, {}), parts)
    assert checked_scores(both, torch.rand(2, 3, 4, 4), ["a", "b"]).tolist() == [5, 2]
    assert not both.differentiable and both.label == "fixed + fixed"


@pytest.mark.parametrize("wrong", [{"parts": ()}, {"parts": (Part(reward=RewardSpec(), weight=0.0),)}])
def test_nothing_to_combine(wrong):
    with pytest.raises(LikenessError):
        CombinedSpec(**wrong)


# --- opening -------------------------------------------------------------------------------------------


def test_the_nodes_list_is_the_tables():
    assert set(REWARDS) == {"auto", *KINDS}


@pytest.mark.parametrize(
    ("name", "told"),
    [("image_reward", "ImageReward.pt"), ("pick_score", "PickScore"), ("aesthetic", "clip-vit-large-patch14"),
     ("nonsense", "image_reward")],
)  # fmt: skip
def test_missing_weights_say_what_to_put_where(name, told, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "no cache"))
    about = About(family="standard", roots=(tmp_path / "models",))
    with pytest.raises(LikenessError, match=told):
        open_reward(RewardSpec(name=name), about)


def test_the_hash_is_of_what_would_be_opened(tmp_path):
    one = reward_hash(RewardSpec(), ABOUT)
    assert one == reward_hash(RewardSpec(name="toybox_preference"), ABOUT)
    assert one != reward_hash(RewardSpec(name="identity"), ABOUT)
    for n, content in enumerate((b"x", b"y")):
        (tmp_path / "vocab.txt").touch()
        (tmp_path / "ImageReward.pt").write_bytes(content * (n + 1))
        given = RewardSpec(name="image_reward", source=str(tmp_path))
        assert reward_hash(given, ABOUT) != one
        one = reward_hash(given, ABOUT)


def test_the_aesthetic_head_is_read_strictly(tmp_path):
    from safetensors.torch import save_file

    state = {}
    for place, (a, b) in zip(ir.HEAD_PLACES, pairwise(AESTHETIC_HEAD), strict=False):
        state |= {f"layers.{place}.weight": torch.randn(b, a), f"layers.{place}.bias": torch.randn(b)}
    save_file(state, tmp_path / "head.safetensors")
    head = aesthetic_head(tmp_path / "head.safetensors")
    assert torch.equal(head[4].weight, state["layers.7.weight"])
    del state["layers.4.bias"]
    save_file(state, tmp_path / "torn.safetensors")
    with pytest.raises(LikenessError, match="bias"):
        aesthetic_head(tmp_path / "torn.safetensors")
