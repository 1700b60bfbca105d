"""What is measured of codes, against sorting and counting one query at a time."""

import json

import numpy as np
import pytest

from hashing_model.codes.bits import pack_bits
from hashing_model.codes.spec import CodeSpec
from hashing_model.errors import InputError
from hashing_model.evaluation.code_health import health
from hashing_model.evaluation.evaluate import CodedImages, evaluate, label_levels
from tests.helpers.make_index import distances_to, make_codes
from tests.helpers.make_labelled import CODED, images_of, some_labels, two_sides

NUMBERS = CodeSpec.parse(','.join(f'b{i}=1' for i in range(9)))  # one bit per segment
PLACE_VALUES = {f'b{i}': 2 ** (8 - i) for i in range(9)}  # distances are XORs of numbers, all different


def is_relevant(queries, database, level):
    """bool [Q, N]: a class in common at one level."""
    own = [[set(v.classes[v.starts[i] : v.starts[i + 1]].tolist()) for i in range(len(v))] for v in (queries, database)]
    return np.array([[bool(a & b) for b in own[1]] for a in own[0]])


def figures_of(quality, profile, level):
    return next(p for p in quality.profiles if p.name == profile).levels[level]


def average_precision(ranked):
    """Of relevances in order."""
    hits = np.flatnonzero(ranked)
    return np.mean((np.arange(len(hits)) + 1) / (hits + 1))


@pytest.mark.parametrize('level', ['tag', 'coarse', 'fine'])
def test_a_ranking_without_ties_is_measured_as_it_is(level):
    rng = np.random.default_rng(4)
    chosen = rng.permutation(512)[:80]
    codes = pack_bits(chosen[:, None] >> np.arange(8, -1, -1) & 1)
    labels = some_labels(80)
    asking, asked = label_levels(labels[:20], labels[20:])
    queries, database = images_of(codes[:20], asking, 'q'), images_of(codes[20:], asked)
    quality = evaluate(queries, database, NUMBERS, [PLACE_VALUES])
    figures = quality.profiles[-1].levels[level]

    order = np.argsort(chosen[:20, None] ^ chosen[None, 20:], axis=1)
    relevant = np.take_along_axis(is_relevant(asking[level], asked[level], level), order, axis=1)
    ranked = relevant[relevant.any(axis=1)]
    assert 0 < figures.queries == len(ranked)
    expected = np.mean([average_precision(r) for r in ranked])
    for found in (figures.map, figures.map_worst, figures.map_best, figures.map_1000):
        assert found == pytest.approx(expected)
    for k, found in figures.precision.items():
        assert found == pytest.approx(np.mean(ranked[:, :k].sum(axis=1) / k))
    assert list(figures.precision) == [1, 2, 5, 10, 20, 50, 100]
    assert figures.recall_100 == 1
    assert figures.hit == {1: pytest.approx(ranked[:, 0].mean()), 10: pytest.approx(ranked[:, :10].any(1).mean())}
    near = np.sort(chosen[:20, None] ^ chosen[None, 20:], axis=1)[relevant.any(axis=1)] <= 2
    assert figures.empty_radius_2 == pytest.approx((~near.any(axis=1)).mean())
    inside = (ranked & near).sum(axis=1) / near.sum(axis=1).clip(1)
    assert figures.precision_radius_2 == pytest.approx(inside.mean())
    of_half = [(np.ceil(r.sum() / 2)) / (np.flatnonzero(r)[int(np.ceil(r.sum() / 2)) - 1] + 1) for r in ranked]
    assert figures.curve[0.5] == pytest.approx(np.mean(of_half))


@pytest.mark.parametrize(('name', 'weights'), [('fine', {'fine': 1}), ('all', None), ('fine=3,look=1', None)])
def test_ties_are_bounded_by_the_worst_and_the_best_order(name, weights):
    queries, database = two_sides(25, 90, CODED)
    given = [{'fine': 3, 'look': 1}]
    weights = given[0] if '=' in name else weights
    quality = evaluate(queries, database, CODED, given)
    distances = distances_to(database.codes, queries.codes, CODED, weights)
    for level in quality.levels:
        relevant = is_relevant(queries.labels[level], database.labels[level], level)
        rows = np.flatnonzero(relevant.any(axis=1))
        worst, best = (
            np.mean([average_precision(relevant[q][np.lexsort((sign * relevant[q], distances[q]))]) for q in rows])
            for sign in (1, -1)
        )
        figures = figures_of(quality, name, level)
        assert figures.map_worst == pytest.approx(worst)
        assert figures.map_best == pytest.approx(best)
        assert figures.map_worst < figures.map < figures.map_best
        rng = np.random.default_rng(0)
        shuffled = [
            average_precision(relevant[q][np.lexsort((rng.random(90), distances[q]))]) for q in rows for _ in range(40)
        ]
        assert figures.map == pytest.approx(np.mean(shuffled), abs=0.01)


def test_a_query_in_the_database_is_asked_without_itself():
    """Every image asks the others: as if each were taken out of the database in turn."""
    _, database = two_sides(1, 40, CODED)
    together = evaluate(database, database, CODED)
    assert together.left_out == together.queries == 40
    singly = []
    for i in range(40):
        query = CodedImages(database.codes[i : i + 1], ['?'], {n: v.take([i]) for n, v in database.labels.items()})
        others = np.delete(np.arange(40), i)
        rest = CodedImages(
            database.codes[others],
            [database.ids[n] for n in others],
            {n: v.take(others) for n, v in database.labels.items()},
        )
        singly.append(evaluate(query, rest, CODED))
        assert singly[-1].left_out == 0
    for profile in together.profiles:
        alone = [next(p for p in quality.profiles if p.name == profile.name) for quality in singly]
        assert profile.ndcg_100 == pytest.approx(np.nanmean([p.ndcg_100 for p in alone]))
        assert profile.hierarchical_ap == pytest.approx(np.nanmean([p.hierarchical_ap for p in alone]))
        for level, figures in profile.levels.items():
            own = [p.levels[level] for p in alone if level in p.levels]
            assert figures.queries == sum(f.queries for f in own)
            for name in ('map', 'map_1000', 'chance', 'recall_100', 'precision_radius_2', 'map_best'):
                assert getattr(figures, name) == pytest.approx(np.nanmean([getattr(f, name) for f in own]))


def test_every_query_is_counted_once():
    labels = [{'fine': ['a']}, {'fine': ['b']}, {}, {'fine': []}, {'fine': ['a', 'c']}]
    asking, asked = label_levels(labels, [{'fine': ['a']}, {}, {'fine': ['d']}])
    codes = make_codes('uniform', 8, CODED)
    quality = evaluate(images_of(codes[:5], asking, 'q'), images_of(codes[5:], asked), CODED)
    for profile in quality.profiles:
        figures = profile.levels['fine']
        assert (figures.queries, figures.without_relevant, figures.unlabelled) == (2, 1, 2)
        assert figures.chance == pytest.approx((1 + 1 / 2 + 1 / 3) / 3)  # one relevant among three, anywhere
    assert any('relevant to 1 of 3 queries' in warning for warning in quality.warnings)


def test_levels_that_are_segments_come_first_in_the_order_of_the_segments():
    queries, database = two_sides(10, 30, CODED)
    assert list(queries.labels) == ['tag', 'coarse', 'fine']
    quality = evaluate(queries, database, CodeSpec.parse('fine=14,coarse=12'))
    assert quality.levels == ('fine', 'coarse', 'tag')
    assert quality.hierarchy == ('fine', 'coarse')


def test_profiles_are_each_segment_all_and_those_given():
    queries, database = two_sides(5, 20, CODED)
    quality = evaluate(queries, database, CODED, [{'fine': 2, 'look': 1}, {'coarse': 3}])
    assert [p.name for p in quality.profiles] == ['coarse', 'fine', 'look', 'all', 'fine=2,look=1', 'coarse=3']
    assert quality.profiles[3].weights == {'coarse': 1, 'fine': 1, 'look': 1}
    assert quality.profiles[5].levels['fine'].map == quality.profiles[0].levels['fine'].map
    one = evaluate(queries, database, CodeSpec.parse('all=20,code=6'))
    assert [p.name for p in one.profiles] == ['all', 'code', 'all segments']
    assert [p.name for p in evaluate(queries, database, CodeSpec.parse('code=26')).profiles] == ['code']


def test_without_levels_that_are_segments_there_is_no_hierarchy():
    queries, database = two_sides(5, 20, CODED)
    quality = evaluate(queries, database, CodeSpec.parse('code=26'))
    assert quality.hierarchy == ()
    assert np.isnan(quality.profiles[0].ndcg_100)
    assert quality.to_json()['profiles'][0]['ndcg_100'] is None


def test_without_labels_only_the_codes_are_measured():
    codes = make_codes('uniform', 50, CODED)
    quality = evaluate(images_of(codes[:10], {}, 'q'), images_of(codes[10:], {}), CODED)
    assert (quality.levels, quality.profiles) == ((), ())
    assert quality.warnings[-1] == 'there are no labels to compare: only the codes themselves were measured'
    assert quality.health.to_json() == health(codes[10:], CODED).to_json()


def test_a_level_that_one_side_lacks_is_told_and_not_measured():
    asking, asked = label_levels([{'fine': ['a']}], [{'coarse': ['b']}])
    codes = make_codes('uniform', 2, CODED)
    quality = evaluate(images_of(codes[:1], asking, 'q'), images_of(codes[1:], asked), CODED)
    assert quality.levels == ()
    assert 'level fine is not measured: only the queries have it' in quality.warnings
    assert 'level coarse is not measured: only the database have it' not in quality.warnings
    assert 'level coarse is not measured: only the database has it' in quality.warnings


# The codes


def test_copies_of_one_picture_are_no_collision():
    codes = np.repeat(make_codes('uniform', 5, CODED), [4, 3, 2, 2, 1], axis=0)
    digests = [b'a', b'b', b'a', b'b', b'c', b'd', b'e', b'f', b'f', None, None, b'g']
    database = CodedImages(codes, [str(i) for i in range(12)], {}, digests)
    found = evaluate(images_of(codes[:1], {}, 'q'), database, CODED).collisions
    assert (found.groups, found.images, found.identical_groups) == (3, 9, 1)
    assert [(c.pictures, c.images) for c in found.worst] == [(3, 3), (2, 4), (2, 2)]
    assert [c.image_ids for c in found.worst] == [('4', '5', '6'), ('0', '1', '2', '3'), ('9', '10')]


def test_the_worst_collisions_are_shown_with_their_first_ids():
    codes = np.repeat(make_codes('uniform', 30, CODED), np.arange(1, 31), axis=0)
    found = evaluate(images_of(codes[:1], {}, 'q'), images_of(codes, {}), CODED).collisions
    assert (found.groups, found.images) == (29, 464)
    assert [c.images for c in found.worst] == list(range(30, 10, -1))
    assert {len(c.image_ids) for c in found.worst} == {10}


def test_copies_of_a_query_under_another_id_are_counted():
    codes = make_codes('uniform', 6, CODED)
    queries = CodedImages(codes[:3], ['a', 'b', 'c'], {}, [b'1', b'2', None])
    database = CodedImages(codes[3:], ['x', 'b', 'c'], {}, [b'1', b'2', None])
    quality = evaluate(queries, database, CODED)
    assert (quality.copies, quality.left_out) == (1, 2)
    assert '1 queries have a copy of their picture in the database, under another id' in quality.warnings
    assert any('2 of 3 queries are in the database under the same id' in warning for warning in quality.warnings)


def test_the_cost_of_a_catalogue_grows_with_it():
    codes = make_codes('uniform', 400, CodeSpec.parse('a=8,b=40'))
    spec = CodeSpec.parse('a=8,b=40')
    tables = [(0, 8), (8, 20), (28, 20)]
    quality = evaluate(images_of(codes[:1], {}, 'q'), images_of(codes, {}), spec, (), {1000: tables, 10**6: tables[:1]})
    small, large = quality.catalogues
    assert [(t.segment, t.start, t.bits) for t in small.tables] == [('a', 0, 8), ('b', 8, 20), ('b', 28, 20)]
    assert small.expected_candidates == pytest.approx(sum(1000 * 2**-t.entropy for t in small.tables))
    assert large.expected_candidates == pytest.approx(1000 * 1000 * 2 ** -small.tables[0].entropy)
    assert small.tables[0].entropy == pytest.approx(8, abs=0.2)
    assert (small.at_most, large.at_most) == (True, False)  # 79,800 pairs cannot show 20 bits


def test_what_is_wrong_with_the_bits_is_said_in_plain_words():
    rng = np.random.default_rng(1)
    bits = rng.integers(0, 2, (1000, 26))
    bits[:, 2], bits[:, 20] = 1, 0  # constant: coarse 2, look 6
    bits[:, 5] = rng.random(1000) < 0.01
    bits[:, 15] = 1 - bits[:, 16]
    bits[:30] = bits[0]
    codes = pack_bits(bits)
    warnings = evaluate(images_of(codes[:1], {}, 'q'), images_of(codes, {}), CODED).warnings
    assert warnings[:4] == (
        'coarse: 1 of 5 bits are the same in all images (2)',
        'fine: 1 of 9 bits have one value in over 95% of the images',
        'look: 1 of 12 bits are the same in all images (6)',
        'look: 1 pairs of bits say the same (correlation above 0.95), such as 1 and 2',
    )
    assert warnings[4] == '30 different pictures (3.0% of all images) have one and the same code'
    sound = make_codes('uniform', 1000, CodeSpec.parse('a=64'))
    assert evaluate(images_of(sound[:1], {}, 'q'), images_of(sound, {}), CodeSpec.parse('a=64')).warnings == (
        'there are no labels to compare: only the codes themselves were measured',
    )


def test_a_segment_that_says_nothing_of_its_label_is_told():
    rng = np.random.default_rng(0)
    kinds = rng.integers(20, size=600)
    (levels,) = label_levels([{'coarse': [str(k)], 'fine': [str(k)]} for k in kinds])
    bits = np.hstack([rng.integers(0, 2, (600, 5)), rng.integers(0, 2, (20, 21))[kinds]])
    images = images_of(pack_bits(bits), levels)
    found = [w for w in evaluate(images, images, CODED).warnings if 'hardly' in w]
    assert len(found) == 1
    assert found[0].startswith('coarse hardly finds its own labels: mAP 0.0')


# What comes out, and what is refused


def strict(text):
    def refuse(constant):
        raise AssertionError(constant)

    return json.loads(text, parse_constant=refuse)


def test_the_json_is_strict_and_complete():
    queries, database = two_sides(12, 60, CODED)
    asking = {**queries.labels, 'fine': queries.labels['fine'].take(np.zeros(12, int))}
    quality = evaluate(CodedImages(queries.codes, queries.ids, asking), database, CODED, (), {100: [(0, 5)]})
    value = quality.to_json()
    assert strict(json.dumps(value, allow_nan=False)) == value
    assert set(value) == {
        *('queries', 'database', 'left_out', 'copies', 'levels', 'hierarchy', 'profiles'),
        *('health', 'collisions', 'catalogues', 'warnings'),
    }
    figures = value['profiles'][0]['levels']['coarse']
    assert figures['map'] == pytest.approx(quality.profiles[0].levels['coarse'].map, rel=1e-5)
    assert list(figures['precision']) == ['1', '2', '5', '10', '20', '50', '100']
    assert list(figures['curve'])[:2] == ['0.05', '0.1']
    for profile in value['profiles']:
        for level in profile['levels'].values():
            assert level['queries'] + level['without_relevant'] + level['unlabelled'] == 12
    assert set(value['health']['segments']) == {'coarse', 'fine', 'look'}


def test_what_has_no_value_is_null_and_not_0():
    asking, asked = label_levels([{'fine': ['a']}], [{'fine': ['b']}])
    codes = make_codes('uniform', 2, CODED)
    quality = evaluate(images_of(codes[:1], asking, 'q'), images_of(codes[1:], asked), CODED)
    figures = strict(json.dumps(quality.to_json(), allow_nan=False))['profiles'][0]['levels']['fine']
    assert figures['queries'] == 0
    assert figures['map'] is figures['chance'] is figures['empty_radius_2'] is figures['curve']['0.5'] is None
    assert set(figures['precision'].values()) == {None}
    assert 'level fine is not measured: nothing in the database is relevant to any query' in quality.warnings


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'codes': np.zeros((0, 4), np.uint8), 'ids': []}, 'there are no queries to measure'),
        ({'ids': ['q'] * 3}, 'the queries have 3 codes and 1 different ids'),
        ({'ids': ['a', 'b']}, 'the queries have 3 codes and 2 different ids'),
        ({'digests': [b'x']}, 'the queries have 3 codes and 1 digests'),
        ({'codes': np.zeros((3, 5), np.uint8)}, 'a code has 5 bytes; the index has codes of 4 bytes'),
    ],
)
def test_what_does_not_fit_is_refused(changes, message):
    codes = make_codes('uniform', 9, CODED)
    fields = {'codes': codes[:3], 'ids': ['a', 'b', 'c'], **changes}
    with pytest.raises(InputError, match=message):
        evaluate(CodedImages(**fields), images_of(codes[3:], {}), CODED)


def test_unknown_segments_in_a_profile_are_refused_without_labels_too():
    images = images_of(make_codes('uniform', 9, CODED), {})
    with pytest.raises(InputError, match="unknown segment 'colour'"):
        evaluate(images, images, CODED, [{'colour': 1}])
