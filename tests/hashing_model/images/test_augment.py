"""Random views: what each operation does, one at a time, and that chance depends on the seed and the place only."""

import dataclasses

import cv2
import numpy as np
import pytest

from hashing_model.errors import InputError
from hashing_model.images.augment import LOOK, TRAIN, Recipe, augment

RECIPES = {'look': LOOK, 'train': TRAIN}

SIDE = 64


def pictures(count=40, side=SIDE, seed=0):
    """Smooth colourful pictures, uint8 [count, side, side, 3]."""
    coarse = np.random.default_rng(seed).integers(0, 256, (count, 5, 5, 3)).astype(np.float32)
    smooth = [cv2.resize(c, (side, side), interpolation=cv2.INTER_CUBIC) for c in coarse]
    return np.clip(smooth, 0, 255).astype(np.uint8)


def flat(value=(200, 120, 40), count=200):
    return np.broadcast_to(np.array(value, np.uint8), (count, SIDE, SIDE, 3))


def views(images, seed=0, threads=1, **changes):
    return augment(images, np.random.default_rng(seed), Recipe(**changes), threads)


def ramp(count=300):
    """Red says the column, green the row, of pixels 4, 7, 10 ...: linear, so that any warp can be read off."""
    line = 4 + 3 * np.arange(SIDE)
    picture = np.stack([*np.meshgrid(line, line), np.full((SIDE, SIDE), 255)], axis=-1)
    return np.broadcast_to(picture.astype(np.uint8), (count, SIDE, SIDE, 3))


def positions(view):
    """Columns and rows of the ramp that a view shows, float [SIDE, SIDE] each."""
    return (view[..., 0].astype(float) - 4) / 3, (view[..., 1].astype(float) - 4) / 3


# Chance


@pytest.mark.parametrize('recipe', RECIPES.values(), ids=RECIPES)
def test_a_seed_gives_one_set_of_views_however_many_threads(recipe):
    images = pictures()
    before = images.copy()
    once = augment(images, np.random.default_rng(3), recipe)
    assert once.shape == images.shape
    assert once.dtype == np.uint8
    for threads in (1, 2, 5):
        np.testing.assert_array_equal(augment(images, np.random.default_rng(3), recipe, threads), once)
    np.testing.assert_array_equal(images, before)
    other = augment(images, np.random.default_rng(4), recipe)
    assert all((a != b).any() for a, b in zip(once, other, strict=True))


@pytest.mark.parametrize('recipe', RECIPES.values(), ids=RECIPES)
def test_a_view_depends_on_its_own_picture_and_place_only(recipe):
    images = pictures()
    all_views = augment(images, np.random.default_rng(3), recipe)
    np.testing.assert_array_equal(augment(images[:7], np.random.default_rng(3), recipe), all_views[:7])
    changed = images.copy()
    changed[:20] = 0
    np.testing.assert_array_equal(augment(changed, np.random.default_rng(3), recipe)[20:], all_views[20:])
    repeated = augment(np.repeat(images[:1], 40, axis=0), np.random.default_rng(3), recipe)
    assert len({view.tobytes() for view in repeated}) == 40


def test_a_generator_goes_on_by_the_same_draws_whatever_the_recipe():
    after = []
    for recipe in (Recipe(), LOOK, TRAIN):
        rng = np.random.default_rng(0)
        augment(pictures(5), rng, recipe)
        after.append(rng.random())
    assert len(set(after)) == 1


def test_without_strength_nothing_happens():
    images = pictures()
    np.testing.assert_array_equal(views(images), images)
    assert not np.shares_memory(views(images), images)
    certain = views(images, rotate=(1, 0), blur=(1, 0), shrink=(1, 1), cutout=(1, 0))
    np.testing.assert_array_equal(certain, images)


def test_no_images_and_images_that_are_not_contiguous():
    assert augment(pictures()[:0], np.random.default_rng(0)).shape == (0, SIDE, SIDE, 3)
    images = pictures()
    mirrored = images[:, :, ::-1, ::-1]
    np.testing.assert_array_equal(
        augment(mirrored, np.random.default_rng(0)), augment(mirrored.copy(), np.random.default_rng(0))
    )


# Each operation


def test_a_crop_keeps_a_rectangle_of_the_wanted_area_and_shape():
    sizes, corners = [], []
    for view in views(ramp(), area=0.4, stretch=1.5):
        column, row = positions(view)
        assert np.ptp(row, axis=1).max() < 1.5  # upright: a row of the view is a row of the picture
        assert np.ptp(column, axis=0).max() < 1.5
        sizes.append(((column[0, -2] - column[0, 1]) / (SIDE - 3), (row[-2, 0] - row[1, 0]) / (SIDE - 3)))
        corners.append((column.min(), column.max(), row.min(), row.max()))
    width, height = np.array(sizes).T
    assert np.min(corners) >= -0.5
    assert np.max(corners) <= SIDE
    area, ratio = width * height, width / height
    assert 0.36 < area.min() < 0.46
    assert 0.93 < area.max() <= 1.05
    assert 0.62 < ratio.min() < 0.75
    assert 1.33 < ratio.max() < 1.6
    left, right = np.array(corners)[:, 0], SIDE - 1 - np.array(corners)[:, 1]
    assert abs(left.mean() - right.mean()) < 1.5  # anywhere
    assert left.max() > 15


def test_a_crop_without_stretch_keeps_the_shape():
    for view in views(ramp(30), area=0.4):
        column, row = positions(view)
        assert abs(np.ptp(column) - np.ptp(row)) < 1.5


def test_flips_befall_their_share_and_are_exact():
    images = pictures(400)
    flipped = views(images, flip=0.3)
    kept = (flipped == images).all(axis=(1, 2, 3))
    np.testing.assert_array_equal(flipped[~kept], images[~kept][:, :, ::-1])
    assert 0.22 < 1 - kept.mean() < 0.38


def test_rotation_turns_around_the_middle_by_up_to_the_angle():
    angles = []
    for view in views(ramp(), rotate=(0.6, 20), border='reflect'):
        column, row = positions(view[16:48, 16:48])
        assert abs(column.mean() - (SIDE - 1) / 2) < 0.6
        assert abs(row.mean() - (SIDE - 1) / 2) < 0.6
        angles.append(np.degrees(np.arctan2(row[:, -1].mean() - row[:, 0].mean(), np.ptp(column.mean(axis=0)))))
    angles = np.array(angles)
    turned = np.abs(angles) > 0.3
    assert 0.5 < turned.mean() < 0.7
    assert -21 < angles.min() < -17
    assert 17 < angles.max() < 21
    assert abs(angles.mean()) < 2


def test_borders_are_mirrored_or_plain():
    corner = views(flat(), rotate=(1, 45), border='reflect')
    np.testing.assert_array_equal(corner, flat())
    corner = views(flat(), rotate=(1, 45), border='plain')[:, 0, 0].astype(int)
    shown = corner[np.abs(corner - [200, 120, 40]).max(axis=1) > 20]
    assert (np.ptp(shown, axis=1) <= 12).mean() > 0.9  # gray; a few corners are half picture
    black, white = (shown.max(axis=1) < 10).mean(), (shown.min(axis=1) > 245).mean()
    assert 0.2 < black < 0.47
    assert 0.2 < white < 0.47


def test_colour_changes_brightness_contrast_and_saturation():
    images = pictures(300, seed=5) // 3 + 80  # far from 0 and 255
    strong = 0.4

    def statistics(x):
        gray = x.astype(float) @ [0.299, 0.587, 0.114]
        chroma = np.abs(x - gray[..., None]).mean(axis=(1, 2, 3))
        return gray.mean(axis=(1, 2)), gray.std(axis=(1, 2)), chroma

    before, after = statistics(images), statistics(views(images, color=strong))
    brightness, contrast, saturation = (b / a for a, b in zip(before, after, strict=True))
    contrast, saturation = contrast / brightness, saturation / contrast
    for factor in (brightness, contrast, saturation):
        assert 0.55 < factor.min() < 0.68
        assert 1.28 < factor.max() < 1.45
        assert abs(np.median(factor) - 1) < 0.08
    correlations = np.corrcoef([brightness, contrast, saturation])
    assert np.abs(correlations - np.eye(3)).max() < 0.25  # independent of each other


def test_tint_scales_each_channel():
    factor = views(flat((100, 100, 100)), tint=0.2)[:, 0, 0] / 100
    assert 0.79 <= factor.min() < 0.83
    assert 1.17 < factor.max() <= 1.21
    assert np.abs(np.corrcoef(factor.T) - np.eye(3)).max() < 0.25


def sharpness(images):
    return np.abs(np.diff(images.astype(float), axis=2)).mean(axis=(1, 2, 3))


def noise(count=200):
    return np.random.default_rng(1).integers(0, 256, (count, SIDE, SIDE, 3)).astype(np.uint8)


def test_blur_smooths_and_keeps_the_mean():
    images = noise()
    blurred = views(images, blur=(0.5, 0.05))
    ratio = sharpness(blurred) / sharpness(images)
    assert 0.4 < (ratio < 0.999).mean() < 0.6
    assert ratio.min() < 0.1
    np.testing.assert_allclose(blurred.mean(axis=(1, 2)), images.mean(axis=(1, 2)), atol=3)


def test_shrinking_loses_what_is_finer_than_the_small_size():
    images = noise()
    shrunken = views(images, shrink=(0.5, 0.25))
    ratio = sharpness(shrunken) / sharpness(images)
    assert 0.4 < (ratio < 0.999).mean() < 0.6
    smooth = pictures(50)  # 5 x 5 px stretched: 16 px hold it
    assert np.abs(views(smooth, shrink=(1, 0.5)).astype(int) - smooth).mean() < 2
    down = cv2.resize(images[0], (32, 32), interpolation=cv2.INTER_AREA)
    strongest = views(np.repeat(images[:1], 200, axis=0), shrink=(1, 0.5))
    again = [cv2.resize(view, (32, 32), interpolation=cv2.INTER_AREA).astype(int) for view in strongest]
    assert min(np.abs(view - down).mean() for view in again) < 8  # the extreme is reached and not passed


def test_jpeg_leaves_the_traces_of_a_quality_in_bounds():
    images = noise(60)
    bgr = np.ascontiguousarray(images[..., ::-1])

    def loss(quality):
        data = [cv2.imencode('.jpg', x, [cv2.IMWRITE_JPEG_QUALITY, quality])[1] for x in bgr]
        decoded = np.stack([cv2.imdecode(x, cv2.IMREAD_COLOR) for x in data])
        return np.abs(decoded.astype(int) - bgr).mean(axis=(1, 2, 3))

    after = np.abs(views(images, jpeg=(0.5, 30)).astype(int) - images).mean(axis=(1, 2, 3))
    touched = after > 0
    assert 0.3 < touched.mean() < 0.7
    assert (after <= loss(30) + 1e-9).all()
    assert (after[touched] >= loss(95)[touched] - 1e-9).all()
    assert after.max() > loss(50).min()
    colours = views(flat((250, 20, 60), 5), jpeg=(1, 90))
    assert np.abs(colours.astype(int) - [250, 20, 60]).max() < 8  # red stays red


def test_cutout_is_one_gray_square_inside_the_picture():
    images = flat((255, 0, 0))
    sides = []
    for view in views(images, cutout=(0.5, 0.5)):
        cut = (view == 127).all(axis=-1)
        assert (view[~cut] == [255, 0, 0]).all()
        if cut.any():
            row, column = np.nonzero(cut)
            assert np.ptp(row) == np.ptp(column)
            assert cut.sum() == (np.ptp(row) + 1) ** 2
            sides.append(np.ptp(row) + 1)
    assert 70 < len(sides) < 130
    assert min(sides) in (16, 17)
    assert max(sides) in (31, 32)


# Recipes


@pytest.mark.parametrize('recipe', RECIPES.values(), ids=RECIPES)
def test_a_view_stays_nearer_to_its_own_picture_than_to_others(recipe):
    """Mean colours of a 4 x 4 grid are kept well enough to tell most of 40 pictures apart."""
    images = pictures()

    def thumbnails(x):
        small = np.stack([cv2.resize(i, (4, 4), interpolation=cv2.INTER_AREA).astype(float).ravel() for i in x])
        small -= small.mean(axis=1, keepdims=True)
        return small / np.linalg.norm(small, axis=1, keepdims=True)

    likeness = thumbnails(augment(images, np.random.default_rng(0), recipe)) @ thumbnails(images).T
    assert (likeness.argmax(axis=1) == np.arange(40)).mean() > 0.6
    drift = augment(images, np.random.default_rng(0), recipe).mean() - images.mean()
    assert abs(drift) < 12  # neither brighter nor darker on average


def test_near_duplicates_are_never_mirrored_and_never_cut():
    assert LOOK.flip == 0
    assert LOOK.cutout[0] == 0


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'flip': 1.5}, 'the chance of flip is 1.5; 0 to 1 is possible'),
        ({'blur': (-0.1, 0.1)}, 'the chance of blur is -0.1'),
        ({'area': 0}, 'area keeps 0; above 0 to 1 is possible'),
        ({'shrink': (1, 1.2)}, 'shrink keeps 1.2'),
        ({'color': 1}, 'color is 1; 0 to below 1 is possible'),
        ({'cutout': (1, 1.5)}, 'cutout is 1.5'),
        ({'stretch': 0.5}, 'stretch is 0.5; 1 is the least'),
        ({'rotate': (1, 200)}, 'rotate is up to 200 degrees'),
        ({'jpeg': (1, 0)}, 'the JPEG quality is 0; 1 to 95 is possible'),
        ({'border': 'wrap'}, "border 'wrap' is unknown; there are reflect, plain"),
    ],
)
def test_impossible_recipes_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        dataclasses.replace(LOOK, **changes)


def test_images_of_another_kind_are_refused():
    rng = np.random.default_rng(0)
    with pytest.raises(InputError, match='images are float32'):
        augment(pictures().astype(np.float32), rng)
    with pytest.raises(InputError, match='images are 32 x 64 px'):
        augment(pictures()[:, :, :32], rng)
    with pytest.raises(InputError, match='threads 0'):
        augment(pictures(), rng, threads=0)
