"""Ids that were seen before: the same that a dict finds, whatever the hashes are."""

import contextlib

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.encoding import ids as duplicates
from pipelines.encoding.encode import images_table
from pipelines.encoding.ids import IDS, find_duplicates, id_hashes, list_ids, places_of, split_ids, without_duplicates
from pipelines.index import layout
from pipelines.index.code_tables import REJECTS, codes_from_arrow
from pipelines.records import DUPLICATE_ID, Record, Source

TEXTS = st.sampled_from(['', 'a', 'b', 'ab', 'ba', 'é', 'e\u0301', 'a\0', 'Schuh/größe 42', 'a' * 300]) | st.text()
IDS_OF_UNITS = st.lists(st.lists(TEXTS, max_size=20), max_size=4)
HASHES = {  # of other texts, too: only ids themselves may tell what is a duplicate
    'all hashes equal': lambda ids: np.zeros(len(ids), np.uint64),
    'hashes of lengths': lambda ids: np.array([len(i) for i in ids.to_pylist()], np.uint64),
    'hashes of texts': id_hashes,
}


def seen_before(ids):
    """Which ids a set has seen."""
    seen, mask = set(), []
    for image_id in ids:
        mask.append(image_id in seen)
        seen.add(image_id)
    return mask


@contextlib.contextmanager
def hashed_by(name):
    """Within, ids are compared by these hashes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(duplicates, 'id_hashes', HASHES[name])
        yield


@pytest.mark.parametrize('hashes', HASHES)
@given(units=IDS_OF_UNITS)
def test_duplicates_are_what_a_set_has_seen(hashes, units):
    everything = [i for ids in units for i in ids]
    chunked = pa.chunked_array([pa.array(ids, pa.string()) for ids in units], pa.string())
    padded = pa.array(['x', *everything, 'y'], pa.string())
    with hashed_by(hashes):
        assert find_duplicates(chunked).tolist() == seen_before(everything)
        assert find_duplicates(padded.slice(1, len(everything))).tolist() == seen_before(everything)


def ids_of(units):
    """Each unit's ids as rows of `IDS`."""
    return [list_ids(pa.table({'image_id': pa.array(ids, pa.string())}), part) for part, ids in enumerate(units)]


@pytest.mark.parametrize('hashes', HASHES)
@given(units=IDS_OF_UNITS, buckets=st.integers(1, 5))
def test_buckets_find_the_duplicates_of_all_units(hashes, units, buckets):
    table = pa.concat_tables([IDS.empty_table(), *ids_of(units)])
    found = set()
    with hashed_by(hashes):
        for _, batch in split_ids(table, buckets):
            seen = find_duplicates(batch['image_id'])
            for part, places in places_of(batch['row'].to_numpy()[seen]):
                found |= {(part, place) for place in places.tolist()}
    places = [(number, place) for number, ids in enumerate(units) for place in range(len(ids))]
    mask = seen_before([i for ids in units for i in ids])
    assert found == {place for place, seen in zip(places, mask, strict=True) if seen}


def test_a_run_of_units_is_split_into_its_ids_and_their_rows():
    ids = [f'id {i}' for i in range(1000)]
    split = dict(split_ids(pa.concat_tables(ids_of([ids[:400], ids[400:]])), 7))
    assert sorted(split) == list(range(7))
    assert all(batch.schema.equals(IDS) for batch in split.values())
    rows = [(row['row'], row['image_id']) for batch in split.values() for row in batch.to_pylist()]
    assert sorted(rows) == [((i >= 400) << 32 | (i - 400 * (i >= 400)), image_id) for i, image_id in enumerate(ids)]
    assert all(np.diff(batch['row'].to_numpy()).min() > 0 for batch in split.values())
    assert max(len(batch) for batch in split.values()) < 2 * 1000 / 7


@given(st.lists(st.text(), max_size=10), st.integers(0, 10))
def test_hashes_mix_the_length_and_every_8_bytes(ids, skipped):
    def mixed(h):
        return int(layout.mix(np.array([h], np.uint64))[0])

    expected = []
    for image_id in ids[skipped:]:
        data = image_id.encode()
        h = mixed(len(data))
        for at in range(0, len(data), 8):
            h = mixed(h ^ int.from_bytes(data[at : at + 8], 'little'))
        expected.append(h)
    whole = pa.array(ids, pa.string())
    assert id_hashes(whole.slice(min(skipped, len(ids)))).tolist() == expected
    assert id_hashes(pa.chunked_array([whole, whole])).tolist() == [*id_hashes(whole), *id_hashes(whole)]


def test_hashes_know_no_pieces():
    ids = [f'id {i}' for i in range(40_000)]
    assert id_hashes(pa.array(ids)).tolist() == np.concatenate([id_hashes(pa.array([i])) for i in ids]).tolist()


def test_hashes_of_like_ids_are_spread_over_all_bits():
    hashes = id_hashes(pa.array([f'shard-00017/{i:06}' for i in range(20_000)]))
    assert len(np.unique(hashes)) == 20_000
    bits = np.unpackbits(hashes.view(np.uint8).reshape(-1, 8), axis=1)
    assert abs(bits.mean(axis=0) - 0.5).max() < 0.02


@given(st.sets(st.integers(0, 6)))
def test_rows_without_duplicates_keep_their_order(dropped):
    records = [Record(f'id {i}', b'', Source('a.tar', f'{i}.jpg')) for i in range(7)]
    codes = np.arange(14, dtype=np.uint8).reshape(7, 2)
    decoded = [type('Size', (), {'width': 1, 'height': 2})] * 7
    mask = np.isin(np.arange(7), list(dropped))
    images, rejects = without_duplicates(images_table(records, codes, decoded), mask)
    kept = [i for i in range(7) if i not in dropped]
    assert images['image_id'].to_pylist() == [f'id {i}' for i in kept]
    np.testing.assert_array_equal(codes_from_arrow(images['code']), codes[kept])
    assert rejects.schema.equals(REJECTS)
    assert rejects.to_pylist() == [
        {
            'source': {'shard': 'a.tar', 'member': f'{i}.jpg'},
            'image_id': f'id {i}',
            'reason': DUPLICATE_ID,
            'detail': 'an earlier record has this id',
        }
        for i in sorted(dropped)
    ]
