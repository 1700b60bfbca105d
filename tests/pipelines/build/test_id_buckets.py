"""The duplicate search over files, in whatever order a runner brings its elements: what dicts find."""

import collections
import contextlib
import dataclasses

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines import files
from pipelines.build import id_buckets
from pipelines.build.id_buckets import split_base_run, split_run
from pipelines.index.code_tables import codes_to_arrow
from pipelines.jobs import blocks
from tests.helpers.make_index import SPEC, config_for

IMAGES = st.lists(st.tuples(st.sampled_from('abcdefghij'), st.integers(0, 1)), max_size=6)  # (id, content)
PER_RUN = 2  # parts


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(id_buckets, 'BUCKETS', (3, 3))
        yield tmp_path_factory.mktemp('ids')


@contextlib.contextmanager
def inlined(size):
    """Within, blocks up to that size travel inline."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, 'INLINE_BYTES', size)
        yield


INLINE_BYTES = st.sampled_from([0, 1 << 18])


def images_of(part):
    codes = np.array([[content] * SPEC.num_bytes for _, content in part], np.uint8).reshape(len(part), SPEC.num_bytes)
    digests = pa.nulls(len(part), pa.binary(16))
    return pa.table(
        {'image_id': pa.array([i for i, _ in part], pa.string()), 'digest': digests, 'code': codes_to_arrow(codes)}
    )


def in_runs(elements, order):
    """(run, elements) of successive parts, all out of order."""
    runs = collections.defaultdict(list)
    for part, element in elements:
        runs[part // PER_RUN].append(element)
    shuffled = [(run, order.sample(found, len(found))) for run, found in runs.items()]
    return order.sample(shuffled, len(shuffled))


def compared(sent, with_base, order):
    """What all buckets give: {(part, place)} of duplicates, and the sum of changes."""
    buckets = collections.defaultdict(list)
    for bucket, block in order.sample(sent, len(sent)):
        buckets[bucket].append(block)
    duplicates, changes = set(), np.zeros(4, np.int64)
    for element in buckets.items():
        for found in id_buckets.compare_ids(element, with_base):
            if isinstance(found, tuple):
                duplicates |= {(found[0], place) for place in np.frombuffer(found[1], '<u4').tolist()}
            else:
                changes += found.value
    return duplicates, changes.tolist()


def first_of_each(units):
    """The content of each id where it stands first, and all other places."""
    kept, later = {}, set()
    for part, images in enumerate(units):
        for place, (image_id, content) in enumerate(images):
            if image_id in kept:
                later.add((part, place))
            kept.setdefault(image_id, content)
    return kept, later


@settings(deadline=None)
@given(
    units=st.lists(IMAGES, min_size=1, max_size=5), order=st.randoms(use_true_random=False), inline_bytes=INLINE_BYTES
)
def test_the_first_of_equal_ids_stays_in_any_order_of_elements(folder, units, order, inline_bytes):
    config = config_for(folder / 'index', len(units))
    staged = [(part, (part, str(folder / f'{part}.parquet'), False)) for part in range(len(units))]
    for (_, (_, uri, _)), images in zip(staged, units, strict=True):
        files.write_table(uri, images_of(images))
    with inlined(inline_bytes):
        sent = [block for run in in_runs(staged, order) for block in split_run(run, config, 1)]
        assert compared(sent, False, order)[0] == first_of_each(units)[1]


@settings(deadline=None)
@given(
    base=st.lists(st.dictionaries(st.sampled_from('abcdefghij'), st.integers(0, 1), max_size=5), max_size=5),
    edited=st.lists(st.none() | IMAGES, min_size=5, max_size=5),
    more=IMAGES,
    order=st.randoms(use_true_random=False),
    inline_bytes=INLINE_BYTES,
)
def test_changes_are_those_between_two_dicts_in_any_order_of_elements(folder, base, edited, more, order, inline_bytes):
    """Parts of the base are taken over, or edited; a part is added."""
    seen, parts = set(), []
    for part in base:  # no version has an id twice
        parts.append([(i, content) for i, content in part.items() if i not in seen])
        seen |= part.keys()
    units = [*(old if new is None else new for old, new in zip(parts, edited, strict=False)), more]
    taken = [new is None for new, _ in zip(edited, parts, strict=False)]
    staged = []
    for part, images in enumerate(units):
        uri = str(folder / f'unit-{part}.parquet')
        files.write_table(uri, images_of(images))
        staged.append((part, (part, uri, part < len(taken) and taken[part])))
    left = [(part, part) for part in range(len(parts)) if not taken[part]]
    config = dataclasses.replace(config_for(folder / 'index', len(units)), base='base')
    with inlined(inline_bytes), pytest.MonkeyPatch.context() as patch:
        of_base = type('Base', (), {'manifest': type('Manifest', (), {'rows': 1})})
        patch.setattr(id_buckets, 'open_base', lambda *_: of_base)
        patch.setattr(id_buckets, 'read_images', lambda _, part, columns: images_of(parts[part]).select(columns))
        sent = [block for run in in_runs(staged, order) for block in split_run(run, config, 1)]
        sent += [block for run in in_runs(left, order) for block in split_base_run(run, config, 1)]
    now, later = first_of_each(units)
    before, _ = first_of_each(parts)
    duplicates, changes = compared(sent, True, order)
    assert duplicates == later
    assert changes == [
        len(now.keys() - before.keys()),
        sum(now[i] != before[i] for i in now.keys() & before.keys()),
        sum(now[i] == before[i] for i in now.keys() & before.keys()),
        len(before.keys() - now.keys()),
    ]
