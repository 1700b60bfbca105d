"""Hand-made features: what each group sees, what it ignores, and that a batch changes nothing."""

import subprocess
import sys

import cv2
import numpy as np
import pytest
import skimage.data
from hypothesis import example, given, settings
from hypothesis import strategies as st
from skimage.feature import hog, local_binary_pattern
from skimage.measure import moments_central, moments_hu, moments_normalized

from hashing_model.errors import InputError
from hashing_model.features import FEATURES, HAND_FEATURES, check_names, hand_features
from hashing_model.features.canvas import SIDE, to_canvas
from hashing_model.features.color import DIMS as COLOR_DIMS
from hashing_model.features.color import HISTOGRAM_DIMS, color
from hashing_model.features.edges import DIMS as EDGES_DIMS
from hashing_model.features.edges import HOG_DIMS, edges
from hashing_model.features.shape import DIMS as SHAPE_DIMS
from hashing_model.features.shape import MOMENT_DIMS, shape
from hashing_model.features.texture import DIMS as TEXTURE_DIMS
from hashing_model.features.texture import texture

DIMS = {'edges': EDGES_DIMS, 'texture': TEXTURE_DIMS, 'shape': SHAPE_DIMS, 'color': COLOR_DIMS}

PHOTOGRAPHS = (
    *('astronaut', 'chelsea', 'coffee', 'rocket', 'retina', 'hubble_deep_field'),
    *('camera', 'coins', 'brick', 'grass', 'gravel'),
)


def resized(image, side):
    return cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA)


def flat(value, side=SIDE):
    return np.full((1, side, side, 3), value, np.uint8)


@pytest.fixture(scope='module')
def photographs():
    """Eleven photographs that come with scikit-image, uint8 [11, 256, 256, 3]."""
    images = (getattr(skimage.data, name)() for name in PHOTOGRAPHS)
    return np.stack([resized(np.dstack([i] * 3) if i.ndim == 2 else i, 256) for i in images])


@pytest.mark.parametrize(('height', 'width'), [(32, 32), (96, 96), (120, 120), (131, 67), (300, 200)])
def test_dims_do_not_depend_on_the_size_of_the_image(height, width):
    images = np.random.default_rng(0).integers(0, 256, (2, height, width, 3), dtype=np.uint8)
    features = hand_features(images)
    assert list(features) == list(HAND_FEATURES)
    for name, values in features.items():
        assert values.shape == (2, DIMS[name])
        assert values.dtype == np.float32
        assert np.isfinite(values).all()


@settings(max_examples=20, deadline=None)
@example(32, 32, 253, 107, 0)  # a few specks on white
@given(st.integers(32, 160), st.integers(32, 160), st.integers(0, 255), st.integers(1, 256), st.integers(0, 2**31))
def test_values_are_finite_for_faint_and_loud_noise(height, width, base, spread, seed):
    noise = np.random.default_rng(seed).integers(0, spread, (1, height, width, 3))
    features = hand_features(np.clip(base + noise, 0, 255).astype(np.uint8))
    assert all(np.isfinite(values).all() and np.abs(values).max() < 100 for values in features.values())


@pytest.mark.parametrize('value', [0, 1, 128, 255])
def test_a_flat_image_has_a_color_and_nothing_else(value):
    features = hand_features(flat(value))
    assert all(np.isfinite(values).all() for values in features.values())
    assert not features['edges'].any()
    assert not features['shape'].any()
    assert np.abs(features['texture'][0, 20:]).max() < 0.01  # Gabor energies
    assert features['color'].any()


def test_alone_in_a_batch_and_in_threads_is_the_same(photographs):
    images = np.concatenate([photographs, photographs[::-1, ::-1], photographs[:, :, ::-1]])
    together = hand_features(images)
    threaded = hand_features(images, threads=3)
    for i in (0, 7, len(images) - 1):
        alone = hand_features(images[i : i + 1])
        for name in HAND_FEATURES:
            np.testing.assert_array_equal(alone[name][0], together[name][i])
    for name in HAND_FEATURES:
        np.testing.assert_array_equal(threaded[name], together[name])
        assert len(np.unique(together[name], axis=0)) > len(photographs)  # the case is not trivial


def test_memory_layout_does_not_matter(photographs):
    turned = photographs[:2, :, ::-1]
    for name, values in hand_features(turned).items():
        np.testing.assert_array_equal(values, hand_features(np.ascontiguousarray(turned))[name])


def test_the_address_in_memory_does_not_matter(photographs):
    images = np.concatenate([photographs] * 4)
    expected = hand_features(images)
    room = np.empty(images.nbytes + 128, np.uint8)
    for offset in (1, 4, 12, 33):
        start = -room.ctypes.data % 64 + offset
        moved = room[start : start + images.nbytes].reshape(images.shape)
        moved[...] = images
        for name, values in hand_features(moved).items():
            np.testing.assert_array_equal(values, expected[name], f'{name} at {offset}')


def test_a_subset_in_its_own_order():
    assert list(hand_features(flat(9), ('color', 'edges'))) == ['color', 'edges']
    assert hand_features(flat(9), ()) == {}


def test_no_images_give_no_rows():
    features = hand_features(np.empty((0, 64, 64, 3), np.uint8), threads=2)
    assert {name: values.shape for name, values in features.items()} == {n: (0, d) for n, d in DIMS.items()}


@pytest.mark.parametrize(
    ('images', 'message'),
    [
        (np.zeros((1, 64, 64, 3), np.float32), r'float32 \[1, 64, 64, 3\]'),
        (np.zeros((64, 64, 3), np.uint8), r'uint8 \[64, 64, 3\]'),
        (np.zeros((1, 64, 64, 4), np.uint8), r'uint8 \[1, 64, 64, 4\]'),
        (np.zeros((1, 31, 64, 3), np.uint8), '64 x 31 px'),
        ([[1]], 'list'),
    ],
)
def test_other_images_are_refused(images, message):
    with pytest.raises(InputError, match=message):
        hand_features(images)
    for function in (edges, texture, shape, color):
        with pytest.raises(InputError, match=message):
            function(images)


def test_unknown_names_and_no_threads_are_refused():
    with pytest.raises(InputError, match=r"'top'.*edges, texture"):
        hand_features(flat(0), ('edges', 'top'))
    with pytest.raises(InputError, match='threads is 0'):
        hand_features(flat(0), threads=0)
    check_names(FEATURES)


@pytest.mark.process
def test_importing_loads_nothing_heavy():
    code = (
        'import sys, hashing_model.features, hashing_model.features.backbone;'
        'print(sorted({"tensorflow", "keras", "cv2", "skimage"} & set(sys.modules)))'
    )
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout == '[]\n'


# What each group sees.


def test_canvas_averages_and_keeps_canvases(photographs):
    canvases = to_canvas(photographs)
    assert to_canvas(canvases) is canvases
    np.testing.assert_allclose(canvases.mean((1, 2)), photographs.mean((1, 2)), atol=0.6)


@pytest.mark.parametrize(('turns', 'bin_'), [(0, 0), (1, 18), (2, 12), (3, 6)])
def test_edges_name_the_direction_of_a_step(turns, bin_):
    step = flat(20)
    step[:, :, SIDE // 2 :] = 230
    directions = edges(np.rot90(step, turns, (1, 2)))[0, HOG_DIMS:]
    assert directions[bin_] == pytest.approx(1, abs=1e-3)
    assert np.delete(directions, bin_).max() < 0.05


def test_hog_of_a_vertical_edge_lies_in_the_first_bin_of_the_middle_cells():
    step = flat(20)
    step[:, :, SIDE // 2 :] = 230
    cells = edges(step)[0, :HOG_DIMS].reshape(4, 4, 2, 2, 9)
    assert cells[..., 0].sum() > 0.99 * cells.sum()
    assert cells[:, 0].sum() == 0  # blocks that begin in cell 0 end before the edge in cell 2
    assert cells[:, 1].sum() > 0


def test_hog_equals_scikit_image(photographs):
    canvases = to_canvas(photographs[:3])
    for canvas, values in zip(canvases, edges(canvases), strict=True):
        expected = hog(cv2.cvtColor(canvas, cv2.COLOR_RGB2GRAY), 9, (24, 24), (2, 2))
        np.testing.assert_allclose(values[:HOG_DIMS], expected, rtol=1e-5, atol=1e-6)


def test_a_quarter_turn_moves_the_direction_histogram_by_a_quarter(photographs):
    canvases = to_canvas(photographs)
    upright, turned = (edges(x)[:, HOG_DIMS:] for x in (canvases, np.rot90(canvases, 1, (1, 2))))
    np.testing.assert_allclose(np.roll(upright, -6, axis=1), turned, atol=0.01)
    assert np.abs(upright - turned).max() > 0.1


@pytest.mark.parametrize(('radius', 'start'), [(1, 0), (3, 10)])
def test_patterns_equal_scikit_image(photographs, radius, start):
    canvases = to_canvas(photographs[:3])
    for canvas, values in zip(canvases, texture(canvases), strict=True):
        labels = local_binary_pattern(cv2.cvtColor(canvas, cv2.COLOR_RGB2GRAY), 8, radius, 'uniform')
        inside = labels[radius : SIDE - radius, radius : SIDE - radius]
        expected = [np.mean(inside == label) for label in range(10)]
        np.testing.assert_allclose(values[start : start + 10] ** 2, expected, atol=1e-6)


@pytest.mark.parametrize('scale', range(4))
@pytest.mark.parametrize('orientation', range(6))
def test_gabor_energy_peaks_at_the_stripes_width_and_direction(scale, orientation):
    angle, wavelength = orientation * np.pi / 6, 4 * 2**scale
    y, x = np.mgrid[:SIDE, :SIDE]
    wave = 128 + 60 * np.cos(2 * np.pi / wavelength * (x * np.cos(angle) + y * np.sin(angle)))
    means = texture(np.rint(wave)[None, :, :, None].repeat(3, 3).astype(np.uint8))[0, 20:].reshape(4, 6, 2)[..., 0]
    assert np.unravel_index(means.argmax(), means.shape) == (scale, orientation)
    assert 20 < np.expm1(means.max()) < 70  # about the wave's amplitude, less what halving the picture blurs


def drawn(points, angle=0.0, shift=(0, 0), scale=1.0):
    """A white polygon on black, turned by `angle` degrees about the middle."""
    turn = cv2.getRotationMatrix2D((0, 0), angle, scale)[:, :2]
    corners = np.array(points) @ turn.T + SIDE / 2 + np.array(shift)
    picture = np.zeros((SIDE, SIDE, 3), np.uint8)
    cv2.fillPoly(picture, [np.rint(corners * 16).astype(np.int32)], (255, 255, 255), cv2.LINE_AA, shift=4)
    return picture


L_SHAPE = [(-25, -30), (-5, -30), (-5, 15), (30, 15), (30, 30), (-25, 30)]
BAR = [(-35, -6), (35, -6), (35, 6), (-35, 6)]
ARROW = [(-30, -5), (5, -5), (5, -20), (32, 0), (5, 20), (5, 5), (-30, 5)]


@pytest.mark.parametrize('points', [L_SHAPE, BAR, ARROW])
def test_hu_moments_know_a_moved_and_turned_shape_from_another(points):
    same = [
        drawn(points, 30),
        drawn(points, 90),
        drawn(points, 200),
        drawn(points, 0, (10, -12)),
        drawn(points, 0, (0, 0), 0.8),
    ]
    others = [drawn(p) for p in (L_SHAPE, BAR, ARROW) if p is not points]
    hu = shape(np.stack([drawn(points), *same, *others]))[:, :4]  # the last three only tell mirror images apart
    distances = np.abs(hu[1:] - hu[0]).max(axis=1)
    assert distances[: len(same)].max() < 0.5 * distances[len(same) :].min()


def test_moments_equal_scikit_image():
    picture = cv2.GaussianBlur(cv2.cvtColor(drawn(ARROW, 20), cv2.COLOR_RGB2GRAY), (5, 5), 0) / 255.0
    normalised = moments_normalized(moments_central(picture))
    values = shape(drawn(ARROW, 20)[None])[0]
    hu = moments_hu(normalised)
    np.testing.assert_allclose(values[:6], (np.sign(hu) * np.log10(1 + np.abs(hu) / 1e-10))[:6], rtol=0.01)
    nu = [normalised[q, p] for p, q in ((2, 0), (1, 1), (0, 2), (3, 0), (2, 1), (1, 2), (0, 3))]  # rows first
    np.testing.assert_allclose(values[7:MOMENT_DIMS], nu, rtol=1e-2, atol=1e-5)


def test_dark_on_bright_has_the_moments_of_bright_on_dark():
    bright, dark = shape(np.stack([drawn(ARROW, 20), 255 - drawn(ARROW, 20)]))[:, :MOMENT_DIMS]
    np.testing.assert_allclose(bright, dark, atol=0.01)


def test_each_level_of_the_pyramid_counts_the_same_edges(photographs):
    counts = shape(photographs)[:, MOMENT_DIMS:] ** 2
    whole, quarters, sixteenths = np.split(counts, [8, 40], axis=1)
    np.testing.assert_allclose(quarters.reshape(-1, 4, 8).sum(1), whole, atol=1e-6)
    np.testing.assert_allclose(sixteenths.reshape(-1, 16, 8).sum(1), whole, atol=1e-6)
    quarter = sixteenths.reshape(-1, 4, 4, 8)[:, :2, 2:].sum((1, 2))
    np.testing.assert_allclose(quarter, quarters.reshape(-1, 2, 2, 8)[:, 0, 1], atol=1e-6)


@pytest.mark.parametrize(('rgb', 'hue'), [((255, 0, 0), 0), ((0, 255, 0), 4), ((0, 0, 255), 8), ((255, 0, 10), 0)])
def test_a_pure_color_fills_one_bin(rgb, hue):
    histogram = color(flat(rgb))[0, :HISTOGRAM_DIMS]
    assert histogram[(hue * 3 + 2) * 3 + 2] == 1
    assert histogram.sum() == 1


def test_gray_pixels_have_no_hue():
    assert color(flat(200))[0, 108 + 200 // 32] == 1


def test_color_moments_equal_their_definition(photographs):
    canvases = to_canvas(photographs[:3])
    for canvas, values in zip(canvases, color(canvases), strict=True):
        lab = cv2.cvtColor(canvas, cv2.COLOR_RGB2LAB)[40:80, 80:].reshape(-1, 3) / 255  # middle row, right column
        third = ((lab - lab.mean(0)) ** 3).mean(0)
        moments = values[HISTOGRAM_DIMS:].reshape(3, 3, 3, 3)[:, 1, 2]
        np.testing.assert_allclose(moments, [lab.mean(0), lab.std(0), np.cbrt(third)], atol=1e-4)


def test_another_hue_changes_color_and_barely_edges(photographs):
    colorful = photographs[:4]
    hsv = np.stack([cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL) for image in colorful])
    hsv[..., 0] += 85  # a third of the circle
    shifted = np.stack([cv2.cvtColor(image, cv2.COLOR_HSV2RGB_FULL) for image in hsv])
    for name, low, high in (('color', 0.5, 2), ('edges', 0, 0.5)):
        before, after = (hand_features(x, (name,))[name] for x in (colorful, shifted))
        between_photographs = np.median([np.linalg.norm(before[i] - before[j]) for i in range(4) for j in range(i)])
        moved = np.median(np.linalg.norm(before - after, axis=1)) / between_photographs
        assert low < moved < high, name


def as_jpeg(image):
    coded = cv2.imencode('.jpg', image, [cv2.IMWRITE_JPEG_QUALITY, 60])[1]
    return cv2.imdecode(coded, cv2.IMREAD_COLOR)  # the order of the channels comes back as it went in


@pytest.mark.parametrize('name', HAND_FEATURES)
@pytest.mark.parametrize('change', [as_jpeg, lambda image: resized(image, 128)], ids=['jpeg', 'half size'])
def test_a_copy_is_nearer_than_any_other_photograph(photographs, name, change):
    originals = hand_features(photographs, (name,))[name]
    copies = hand_features(np.stack([change(image) for image in photographs]), (name,))[name]
    distances = np.linalg.norm(originals[:, None] - copies, axis=2)
    np.testing.assert_array_equal(distances.argmin(axis=1), np.arange(len(photographs)))
