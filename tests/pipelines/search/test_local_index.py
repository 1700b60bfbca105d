"""`LocalIndex` against exhaustive search, on indexes made without Beam."""

import tempfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hashing_model.codes.spec import CodeSpec
from hashing_model.errors import InputError
from pipelines.search.local_index import LocalIndex, SearchResult
from tests.helpers.make_index import (
    KINDS,
    distances_to,
    flip_bits,
    make_codes,
    make_version,
    nearest,
    read_served,
    served_folder,
)

SPEC = CodeSpec.parse('coarse=16,fine=24,look=40')
SPECS = ('coarse=16,fine=24,look=40', 'coarse=3,look=40', 'tiny=7', 'coarse=32,fine=32,look=64', 'odd=20,look=45')


def check(index, codes, rows, queries, spec, k, radius, profile):
    """One search equals sorting all distances; `rows` are the codes' row numbers."""
    result = index.search(queries, k, radius, profile)
    expected = nearest(distances_to(codes, queries, spec, profile), k, radius)
    assert result.distances.shape[1] == (k if k is not None else max(map(len, expected)))
    for q, answers in enumerate(expected):
        n = len(answers)
        places = [place for _, place in answers]
        assert result.distances[q, :n].tolist() == [d for d, _ in answers]
        assert result.rows[q, :n].tolist() == rows[places].tolist()
        assert result.image_ids[q, :n].tolist() == [str(place) for place in places]
        assert (result.distances[q, n:] == -1).all()
        assert (result.rows[q, n:] == -1).all()
        assert all(i is None for i in result.image_ids[q, n:])


def cut(codes, places):
    """Codes as parts that end at some places, and their row numbers."""
    parts = np.split(codes, sorted(places))
    return parts, np.concatenate([(np.int64(i) << 32) + np.arange(len(p)) for i, p in enumerate(parts)])


@settings(max_examples=25, deadline=None)
@given(data=st.data(), kind=st.sampled_from(KINDS), rows=st.integers(1, 500), seed=st.integers(0, 2**32 - 1))
def test_a_search_equals_sorting_all_distances(data, kind, rows, seed):
    spec = CodeSpec.parse(data.draw(st.sampled_from(SPECS), 'spec'))
    codes = make_codes(kind, rows, spec, seed)
    if kind == 'identical' and data.draw(st.booleans(), 'all identical'):
        codes[:] = codes[0]
    parts, numbers = cut(codes, data.draw(st.lists(st.integers(0, rows), max_size=3), 'cuts'))
    near = flip_bits(codes[:: -(-rows // 4)], spec, data.draw(st.sampled_from([0, 0.05, 0.2]), 'flipped'), seed)
    queries = np.concatenate([near, make_codes('uniform', 1, spec, seed + 1)])
    with tempfile.TemporaryDirectory() as folder:
        make_version(
            folder, spec, parts, data.draw(st.sampled_from([20, 200, 10_000, *([1] if rows < 100 else [])]), 'target')
        )
        index = LocalIndex.open(folder)
        for _ in range(6):
            k = data.draw(st.sampled_from([None, 1, 2, 10, rows, rows + 1, 600]), 'k')
            radius = data.draw(st.integers(0, spec.bits * 2) | (st.none() if k is not None else st.just(3)), 'radius')
            weights = st.dictionaries(st.sampled_from(spec.names), st.integers(0, 4)).filter(lambda w: any(w.values()))
            profile = data.draw(st.none() | weights, 'profile')
            check(index, codes, numbers, queries, spec, k, radius, profile)


@pytest.fixture(scope='module')
def codes():
    return make_codes('clustered', 400, SPEC)


@pytest.fixture(scope='module')
def folder(tmp_path_factory, codes):
    """An index with two versions, of which the second, of all codes, is served."""
    folder = tmp_path_factory.mktemp('local')
    make_version(folder, SPEC, [codes[:50]], version='first')
    make_version(folder, SPEC, [codes[:150], codes[150:150], codes[150:]], 100, version='second')
    return folder


def test_shapes_and_types(folder, codes):
    result = LocalIndex.open(folder).search(codes[:7], k=5)
    assert isinstance(result, SearchResult)
    assert result.distances.shape == result.rows.shape == result.image_ids.shape == (7, 5)
    assert (result.distances.dtype, result.rows.dtype, result.image_ids.dtype) == (np.int32, np.int64, object)
    assert (result.distances[:, 0] == 0).all()


def test_places_without_an_answer_are_padded(folder, codes):
    result = LocalIndex.open(folder).search(codes[:2], k=500)
    assert result.rows.shape == (2, 500)
    for array, padding in ((result.distances, -1), (result.rows, -1), (result.image_ids, None)):
        assert [list(line) for line in array[:, 400:]] == [[padding] * 100] * 2
    assert (result.distances[:, :400] >= 0).all()


def test_all_answers_within_a_radius_may_be_none(folder, codes):
    far = codes[:1] ^ np.uint8(255)
    result = LocalIndex.open(folder).search(far, k=None, radius=0)
    assert result.rows.shape == (1, 0)
    assert LocalIndex.open(folder).search(far, k=3, radius=0).rows.tolist() == [[-1, -1, -1]]


def test_no_query_gives_no_answers(folder, codes):
    result = LocalIndex.open(folder).search(codes[:0], k=4)
    assert result.distances.shape == (0, 4)


def test_each_query_is_answered_as_if_alone(folder, codes):
    index = LocalIndex.open(folder)
    queries = np.concatenate([codes[:20:4], make_codes('uniform', 5, SPEC, seed=3)])
    together = index.search(queries, k=9)
    for q in range(len(queries)):
        alone = index.search(queries[q : q + 1], k=9)
        np.testing.assert_array_equal(alone.rows[0], together.rows[q])
        np.testing.assert_array_equal(alone.distances[0], together.distances[q])


def test_the_served_version_or_a_named_one_is_opened(folder):
    assert (len(LocalIndex.open(folder)), LocalIndex.open(folder).manifest.version) == (400, 'second')
    assert (len(LocalIndex.open(str(folder), 'first')), LocalIndex.open(folder, 'first').manifest.version) == (
        50,
        'first',
    )


def test_an_open_index_keeps_its_version(tmp_path, codes):
    make_version(tmp_path, SPEC, [codes[:50]], version='first')
    index = LocalIndex.open(tmp_path)
    make_version(tmp_path, SPEC, [codes[50:]], version='second')
    assert index.search(codes[:1], k=1).image_ids.tolist() == [['0']]
    assert len(index) == 50
    assert len(LocalIndex.open(tmp_path)) == 350


def test_images_come_in_the_order_asked(folder, codes):
    index = LocalIndex.open(folder)
    rows = np.array([(2 << 32) + 7, 3, (2 << 32) + 1, 3])
    table = index.images(rows, ['image_id', 'code'])
    assert table['image_id'].to_pylist() == ['157', '3', '151', '3']
    assert table['code'].to_pylist() == [bytes(codes[i]) for i in (157, 3, 151, 3)]
    assert index.images(rows[:0]).num_rows == 0
    assert index.images(rows).column_names[0] == 'image_id'


@pytest.mark.parametrize(
    ('limits', 'message'),
    [
        ({'k': 0}, 'k is 0'),
        ({'k': None}, 'give k, a radius, or both'),
        ({'radius': -1}, 'the radius is -1'),
        ({'profile': {'colour': 1}}, 'colour'),
        ({'profile': {'coarse': 0}}, 'profile'),
        ({'profile': {'coarse': -1}}, 'coarse'),
        ({'profile': {'coarse': 0.5}}, 'coarse'),
        ({'k': 'all'}, "k is 'all'; a whole number is needed"),
        ({'k': 2.5}, 'k is 2.5'),
        ({'k': True}, 'k is True'),
        ({'radius': float('nan')}, 'radius is nan'),
        ({'threads': 0}, 'threads are 0'),
        ({'threads': None}, 'threads are None'),
        ({'where': 'fine=cat'}, "where is 'fine=cat'; give"),
        ({'where': {'nolevel': 'x'}}, 'no image has a label nolevel'),
    ],
)
@pytest.mark.parametrize('in_memory', [True, False])
def test_limits_that_make_no_sense_are_refused(folder, codes, limits, message, in_memory):
    with pytest.raises(InputError, match=message):
        LocalIndex.open(folder, in_memory=in_memory).search(codes[:1], **limits)


def test_images_that_are_not_there_are_refused(folder):
    index = LocalIndex.open(folder)
    for row in (150, 1 << 32, (2 << 32) + 250, 3 << 32):
        with pytest.raises(InputError, match=f'row {row} is no row of this index'):
            index.images(np.array([3, row]))
    with pytest.raises(InputError, match="no column 'nocol'; they have image_id"):
        index.images(np.array([3]), ['image_id', 'nocol'])
    assert index.images([1, 2], ['image_id'])['image_id'].to_pylist() == ['1', '2']
    assert index.images(np.array([3], np.int32), ['image_id'])['image_id'].to_pylist() == ['3']


def test_codes_that_do_not_fit_are_refused(folder, codes):
    index = LocalIndex.open(folder)
    with pytest.raises(InputError, match='a code has 9 bytes; the index has codes of 10 bytes'):
        index.search(codes[:, :9])
    with pytest.raises(InputError, match='uint8'):
        index.search(codes.astype(np.int64))
    with pytest.raises(InputError, match='uint8'):
        index.search(codes[0])


def test_bits_beyond_the_code_are_refused(tmp_path):
    spec = CodeSpec.parse('odd=20')
    make_version(tmp_path, spec, [make_codes('uniform', 5, spec)])
    with pytest.raises(InputError, match='beyond the 20 bits'):
        LocalIndex.open(tmp_path).search(np.full((1, 3), 255, np.uint8))


def test_what_is_no_index_is_refused(tmp_path, folder):
    with pytest.raises(InputError, match='is not an index'):
        LocalIndex.open(tmp_path / 'none')
    with pytest.raises(InputError, match='has no version third'):
        LocalIndex.open(folder, 'third')
    (tmp_path / 'versions').mkdir()
    with pytest.raises(InputError, match='has no finished version'):
        LocalIndex.open(tmp_path)


def test_a_manifest_that_cannot_be_read_is_refused(tmp_path, codes):
    make_version(tmp_path, SPEC, [codes])
    path = served_folder(tmp_path) / 'manifest.json'
    whole = path.read_text()
    for content, message in (
        (whole[:100], 'is not a manifest'),
        (whole.replace('"format_version": 1', '"format_version": 99'), 'has index format 99'),
    ):
        path.write_text(content)
        with pytest.raises(InputError, match=message):
            LocalIndex.open(tmp_path)


def test_a_missing_or_damaged_file_is_named_when_it_is_needed(tmp_path, codes):
    make_version(tmp_path, SPEC, [codes])
    for table in read_served(tmp_path).tables:
        (file,) = table.partitions[1].files
        (served_folder(tmp_path) / file.path).write_bytes(b'PAR1')
    with pytest.raises(OSError, match=r'cannot read .*codes/table=\d/prefix=1/part-0\.parquet'):
        LocalIndex.open(tmp_path).search(codes[:1] ^ np.uint8(0x55), k=400)
    (served_folder(tmp_path) / 'sample.parquet').unlink()
    with pytest.raises(OSError, match=r'cannot read .*sample\.parquet'):
        LocalIndex.open(tmp_path).search(codes[:1])
