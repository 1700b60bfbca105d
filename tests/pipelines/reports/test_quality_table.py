"""The tables of an evaluation on a terminal."""

import dataclasses
import math

import pytest

from hashing_model.evaluation.evaluate import evaluate, label_levels
from pipelines.reports.quality_table import print_quality
from tests.helpers.make_index import make_codes
from tests.helpers.make_labelled import CODED, images_of, two_sides

MODEL = {'method': 'itq', 'fingerprint': 'f' * 64}


def lines_of(quality, capsys, model=MODEL):
    print_quality(quality, model)
    return [line.rstrip() for line in capsys.readouterr().out.splitlines()]


def test_every_profile_has_a_row_at_every_level(capsys):
    quality = evaluate(*two_sides(20, 60, CODED), CODED, [{'look': 2}], {60: [(0, 5), (5, 9), (14, 12)]})
    lines = lines_of(quality, capsys)
    assert lines[0] == 'asked     20 queries in a database of 60 images, the queries are not in it'
    assert lines[1] == 'model     itq ffffffffffff'
    start = lines.index('what is found, by label level') + 2
    for level in quality.levels:
        for i, profile in enumerate(quality.profiles):
            words = lines[start + i].split()
            figures = profile.levels[level]
            assert words[:2] == [level, profile.name] if i == 0 else words[0] == profile.name
            assert words[2 if i == 0 else 1] == f'{figures.map:.3f}'
            assert words[-1] == f'{figures.empty_radius_2:.3f}'
        assert lines[start + len(quality.profiles)].split() == ['chance', f'{figures.chance:.3f}']
        start += len(quality.profiles) + 2
    (cost,) = quality.catalogues
    assert lines[lines.index('what a query visits at radius 0, by H2 of the tables') + 2].split()[:2] == [
        *('60', f'{cost.expected_candidates:,.0f}')
    ]


def test_levels_without_figures_have_no_rows(capsys):
    asking, asked = label_levels([{'fine': ['a']}], [{'fine': ['b']}])
    codes = make_codes('uniform', 2, CODED)
    lines = lines_of(evaluate(images_of(codes[:1], asking, 'q'), images_of(codes[1:], asked), CODED), capsys, None)
    assert lines[1] == 'model     none, from codes'
    assert not any('what is found' in line or 'nan' in line for line in lines)
    assert lines[-1] == 'warning     level fine is not measured: nothing in the database is relevant to any query'


@pytest.mark.parametrize(('left_out', 'text'), [(20, 'each without itself'), (3, '3 without themselves')])
def test_who_was_left_out_is_said(capsys, left_out, text):
    quality = dataclasses.replace(evaluate(*two_sides(20, 60, CODED), CODED), left_out=left_out)
    assert lines_of(quality, capsys)[0].endswith(f'60 images, {text}')


def test_names_in_square_brackets_are_no_markup(capsys):
    (levels,) = label_levels([{'[red]kind': ['a']}] * 9)
    images = images_of(make_codes('uniform', 9, CODED), levels)
    quality = evaluate(images, images, CODED)
    assert math.isclose(quality.profiles[0].levels['[red]kind'].map, 1)
    assert any(line.startswith('[red]kind ') for line in lines_of(quality, capsys))
