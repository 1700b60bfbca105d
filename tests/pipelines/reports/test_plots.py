"""The plots of an evaluation: pictures of the size and kind that a page or a mail can show."""

import io

import numpy as np
import pytest
from PIL import Image

from hashing_model.codes.spec import CodeSpec
from hashing_model.evaluation.evaluate import evaluate, label_levels
from pipelines.reports.plots import COLORS, PLOTS
from tests.helpers.make_index import make_codes
from tests.helpers.make_labelled import CODED, images_of, some_labels, two_sides


def pixels(content):
    image = Image.open(io.BytesIO(content))
    assert image.format == 'PNG'
    return np.asarray(image.convert('RGB'))


def has_color(image, color):
    return (image == [int(color[i : i + 2], 16) for i in (1, 3, 5)]).all(axis=2).any()


@pytest.fixture(scope='module')
def quality():
    return evaluate(*two_sides(30, 100, CODED), CODED, [{'fine': 2, 'look': 1}])


@pytest.mark.parametrize('name', PLOTS)
def test_a_plot_is_900_pixels_wide_on_white(quality, name):
    image = pixels(PLOTS[name](quality))
    assert image.shape[1] == 900
    assert 350 <= image.shape[0] <= 800
    assert (image[0] == 255).all()
    assert (image[:, -1] == 255).all()
    assert (image != 255).any(axis=2).mean() > 0.01
    assert PLOTS[name](quality) == PLOTS[name](quality)


def test_every_profile_has_its_colour(quality):
    for name in ('precision-recall.png', 'precision-at-k.png', 'map.png'):
        image = pixels(PLOTS[name](quality))
        assert [has_color(image, color) for color in COLORS] == [True] * 4 + [False] * 2
    image = pixels(PLOTS['bit-balance.png'](quality))
    assert [has_color(image, color) for color in COLORS] == [True] * 3 + [False] * 3


def test_without_labels_there_are_the_plots_of_the_bits():
    images = images_of(make_codes('uniform', 40, CODED), {})
    bare = evaluate(images, images, CODED)
    assert [name for name, draw in PLOTS.items() if draw(bare)] == ['bit-balance.png', 'bit-correlation.png']


def test_names_may_hold_anything_and_levels_may_be_many():
    labels = [{f'${i}_{{': found['coarse'] for i in range(5)} for found in some_labels(40)]
    (levels,) = label_levels(labels)
    images = images_of(make_codes('clustered', 40, CodeSpec.parse('a=26')), levels)
    quality = evaluate(images, images, CodeSpec.parse('a=26'))
    assert len(quality.levels) == 5
    for draw in PLOTS.values():
        assert pixels(draw(quality)).shape[1] == 900
