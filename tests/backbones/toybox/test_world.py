"""The toy world: drawn alike every time, masks that mean what they say, evaluation apart from training."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
from likeness.backbones.toybox import captions, render, world
from likeness.backbones.toybox.training import identity
from likeness.core.errors import LikenessError


@pytest.mark.parametrize("seed", [0, 1, 2, 7])
def test_a_picture_is_drawn_alike_every_time(seed: int) -> None:
    first, again = (render.render(world.sample_picture(seed)) for _ in range(2))
    assert np.array_equal(first.image, again.image) and np.array_equal(first.masks, again.masks)
    assert np.array_equal(first.image, render.image(world.sample_picture(seed)))
    assert first.image.shape == (64, 64, 3) and first.image.dtype == np.uint8


def test_different_seeds_are_different_pictures() -> None:
    assert len({render.image(world.sample_picture(seed)).tobytes() for seed in range(50)}) == 50


def test_boxes_are_the_tight_boxes_of_the_masks() -> None:
    for seed in range(60):
        drawn = render.render(world.sample_picture(seed))
        for mask, (x0, y0, x1, y1) in zip(drawn.masks, drawn.boxes, strict=True):
            assert mask.sum() == mask[y0:y1, x0:x1].sum() > 60
            assert mask[y0].any() and mask[y1 - 1].any() and mask[:, x0].any() and mask[:, x1 - 1].any()


def test_a_mask_holds_the_pixels_that_change_with_the_thing() -> None:
    red = world.Look(colour="red")
    for noun in world.NOUNS:
        picture = world.Picture(things=(world.Thing(noun=noun, look=red),), scene="studio")
        recoloured = replace(picture, things=(replace(picture.things[0], look=world.Look(colour="blue")),))
        drawn = render.render(picture)
        changed = (drawn.image.astype(int) != render.image(recoloured)).any(axis=2)
        beside = changed & ~drawn.masks[0]
        assert changed[drawn.masks[0]].mean() > 0.35, noun
        assert beside.sum() < 0.35 * drawn.masks[0].sum(), noun  # half-covered edge pixels


def test_things_are_where_their_relation_says() -> None:
    seen = set()
    for seed in range(400):
        picture = world.sample_picture(seed)
        if len(picture.things) == 2:
            (x0, y0, x1, y1), (u0, v0, u1, v1) = render.render(picture).boxes
            right_of, below = x0 + x1 > u0 + u1, y0 + y1 > v0 + v1
            assert {"left": not right_of, "right": right_of, "above": not below, "below": below}[
                picture.relation
            ]
            seen.add(picture.relation)
    assert seen == set(world.RELATIONS)


def test_captions_tell_what_is_named_and_nothing_else() -> None:
    thing = world.Thing(noun="elephant", look=world.Look(colour="orange"), accessory="hat", action="kite")
    picture = world.Picture(things=(thing,), scene="snow", light="sunset")
    assert captions.caption(picture) == "a photo of an elephant"
    assert captions.caption(world.fully_named(picture)) == (
        "a photo of an orange elephant wearing a hat flying a kite in the snow at sunset"
    )


def test_no_evaluation_caption_is_a_training_caption() -> None:
    train = [world.sample_picture(seed) for seed in range(4000)]
    train += [world.renamed(picture, seed) for seed, picture in enumerate(train)]
    judged = [world.sample_picture(seed, split="eval") for seed in range(600)]
    judged += [p for i in range(20) for p in world.subject_pictures(world.subject("cat", i), 6, i)]
    trained = {captions.caption(replace(p, template="")) for p in train}
    assert not trained & {captions.caption(replace(p, template="")) for p in judged}
    assert not {world.caption_key(p) for p in train} & {world.caption_key(p) for p in judged}


def test_no_subject_is_a_training_instance() -> None:
    subjects = {
        (s.noun, s.look.key) for noun in world.NOUNS for s in (world.subject(noun, i) for i in range(40))
    }
    trained = {(s.noun, s.look.key) for s in map(identity.training_instance, range(1500))}
    sampled = {(t.noun, t.look.key) for seed in range(4000) for t in world.sample_picture(seed).things}
    assert not subjects & trained and not subjects & sampled
    assert all(world.look_reserved(*pair_) for pair_ in ((s.noun, s.look) for s in [world.subject("car", 3)]))


def test_a_subject_keeps_its_look_and_changes_all_else() -> None:
    subject = world.subject("rabbit", 1)
    pictures = world.subject_pictures(subject, 12, seed=0)
    assert pictures == world.subject_pictures(subject, 12, seed=0)
    assert {p.things[0].look for p in pictures} == {subject.look}
    assert len({p.scene for p in pictures}) > 3 and len({captions.caption(p) for p in pictures}) == 12
    assert all(subject.look.colour not in captions.caption(p) for p in pictures)


def test_an_unknown_noun_is_a_clear_error() -> None:
    with pytest.raises(LikenessError, match="unicorn"):
        world.subject("unicorn", 0)


def test_redrawing_is_a_function_of_the_generator() -> None:
    subject = world.subject("boat", 0)
    assert world.redraw(subject, random.Random(5)) == world.redraw(subject, random.Random(5))


def test_empty_scenes_are_told_by_their_place_and_light() -> None:
    pictures = world.empty_scenes()
    assert len({render.image(picture).tobytes() for picture in pictures}) > 0.9 * len(pictures)
    told = {captions.caption(picture) for picture in pictures}
    assert {"a photo of the beach at night", "a meadow"} <= told
    assert {picture.scene for picture in pictures} == set(world.SCENES)


def test_crowds_are_several_things_that_hide_little_of_each_other() -> None:
    crowds = [world.crowd(number) for number in range(60)]
    assert crowds == [world.crowd(number) for number in range(60)]
    assert {len(picture.things) for picture in crowds} == {1, 2, 3, 4}
    for picture in crowds:
        things = picture.things
        assert not any(world.look_reserved(t.noun, t.look) for t in things if not world.nameable(t.look))
        for mask, thing in zip(render.render(picture).masks, things, strict=True):
            alone = render.render(replace(picture, things=(thing,))).masks[0]
            assert mask.sum() > 0.7 * alone.sum()
