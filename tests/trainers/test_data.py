"""The walk over photos, naming the subject in captions, cached posteriors."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from likeness.backbones import open_backbone
from likeness.subjects import from_images
from likeness.trainers.data import (
    RANDOM_VIEWS,
    cache_latents,
    cache_texts,
    draw_rows,
    drawn_views,
    epoch_of,
    name_subject,
    photo_masks,
    photo_views,
    shuffled,
)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 7), st.integers(1, 9), st.integers(0, 50))
def test_every_round_shows_everything_once(num, batch, seed):
    things = list(range(10, 10 + num))
    walk = [thing for index in range(num) for thing in shuffled(things, batch, index, seed, "photo")]
    rounds = [walk[i : i + num] for i in range(0, len(walk), num)]
    assert all(sorted(one) == things for one in rounds)


def test_rounds_differ_and_seeds_differ():
    def walk(seed):
        return [shuffled(range(6), 6, index, seed, "photo") for index in range(4)]

    assert len({tuple(one) for one in walk(0)}) == 4
    assert walk(0) != walk(1)


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("a photo of {} by {}", "a photo of <x> by <x>"),
        ("A sks fish, and a fish", "A <x>, and a fish"),
        ("two Fish and starfish", "two <x> and starfish"),
        ("a starfish", "<x>, a starfish"),
        ("a red sks", "a red <x>"),
    ],
)
def test_the_subject_is_named(subject, caption, expected):
    assert name_subject(caption, "<x>", subject) == expected


def cached(base, subject, **changes):
    settings = {"crop": "center", "flip": False, "seed": 0, **changes}
    backbone = open_backbone(base)
    events = cache_latents(backbone, photo_views(subject.photos, backbone, **settings))
    while True:
        try:
            next(events)
        except StopIteration as end:
            return backbone, end.value


def test_a_long_photo_is_seen_in_several_random_crops_and_a_square_one_once(base, tmp_path):
    long = from_images(torch.rand(1, 16, 48, 3), tmp_path, class_noun="fish").photos
    square = from_images(torch.rand(1, 32, 32, 3), tmp_path, class_noun="fish").photos
    views = photo_views([*long, *square], open_backbone(base), crop="random", flip=True, seed=0)
    assert [number for number, _ in views] == [0] * 2 * RANDOM_VIEWS + [1, 1]
    assert not torch.equal(views[0][1], views[2][1])
    assert torch.equal(views[-2][1].flip(-1), views[-1][1])


def test_a_bucket_shows_photos_in_their_own_shape(base, tmp_path):
    shapes = ((32, 48), (48, 32), (40, 40), (33, 48))  # height, width
    photos = [
        photo
        for height, width in shapes
        for photo in from_images(torch.rand(1, height, width, 3), tmp_path, class_noun="fish").photos
    ]
    backbone = open_backbone(base)
    size, step = backbone.image_size, backbone.size_step
    settings = {"crop": "bucket", "flip": False, "seed": 0}
    views = photo_views(photos, backbone, **settings)
    sizes = [tuple(image.shape[1:]) for _, image in views]
    assert sizes[0] == sizes[3] != sizes[2] == (size, size) and sizes[1] == sizes[0][::-1]
    assert all(edge % step == 0 for both in sizes for edge in both)
    assert [mask.shape[1:] for mask in photo_masks(photos, backbone, **settings)] == sizes

    events = cache_latents(backbone, views)
    while True:
        try:
            next(events)
        except StopIteration as end:
            cache = end.value
            break
    batches = [drawn_views(cache, range(4), 3, index, 0, "photo") for index in range(8)]
    assert batches == [drawn_views(cache, range(4), 3, index, 0, "photo") for index in range(8)]
    assert all(len({cache.size(view) for view in batch}) == 1 for batch in batches)
    leaders = [batch[0] for batch in batches]
    assert sorted(leaders[:4]) == sorted(leaders[4:]) == [0, 1, 2, 3]
    rows = draw_rows(backbone, cache, batches[leaders.index(1)], 0, 0)
    assert rows.latents_BCHW.shape[2:] == cache.size(1)


def test_repeats(base, subject):
    _, cache = cached(base, subject)
    assert len(cache) == 3
    photos = [replace(photo, repeats=n) for photo, n in zip(subject.photos, (1, 3, 1), strict=True)]
    assert epoch_of(cache, photos) == [0, 1, 1, 1, 2]


def test_the_posterior_is_cached_and_sampled_anew(base, subject):
    backbone, cache = cached(base, subject)
    rows = [draw_rows(backbone, cache, [0, 0], 0, index) for index in (0, 1, 1)]
    latents = rows[0].latents_BCHW
    assert not torch.equal(latents[0], latents[1]) and not torch.equal(latents, rows[1].latents_BCHW)
    for name in ("latents_BCHW", "noise_BCHW", "t_B"):
        assert torch.equal(getattr(rows[1], name), getattr(rows[2], name))
    spread = (latents[0] - cache.mean_N[0]).abs() / cache.std_N[0]
    assert 0.3 < spread.mean() < 1.5  # half-normal: 0.8


def test_joined_caches_keep_their_sources_apart(base, subject):
    _, cache = cached(base, subject)
    both = cache.joined(cache)
    assert both.source_N == (0, 1, 2, 3, 4, 5)
    assert torch.equal(torch.stack(both.mean_N[3:]), torch.stack(cache.mean_N))


def test_cached_texts_are_the_encoder_s(base, subject):
    backbone = open_backbone(base)
    prompts = ["a photo of a fish", "a dog", "a photo of a fish"]
    cached_texts = cache_texts(backbone, prompts).context
    with torch.no_grad():
        torch.testing.assert_close(cached_texts, backbone.encode_prompts(prompts).context)
