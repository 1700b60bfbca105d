"""The embedded catalogue is whole, small, labelled, and packed the way its script packs it."""

import gzip
import importlib.util
import io
import json
import sys
import tarfile
from collections import Counter

import pytest
from PIL import Image

from tests.helpers.make_index import ROOT

EXAMPLES = ROOT / 'examples'
CATALOGUE = EXAMPLES / 'catalogue'
SHARDS = sorted(CATALOGUE.glob('*.tar.gz'))
KINDS = ('index-fluent', 'index-google', 'query-twitter')
RECORDS_BY_STYLE = {'fluent': 1579, 'google': 1616, 'twitter': 1616}


def read_shard(shard):
    with tarfile.open(shard) as tar:
        return [(member, tar.extractfile(member).read()) for member in tar]


@pytest.fixture(scope='module')
def members():
    return {shard.name: read_shard(shard) for shard in SHARDS}


@pytest.fixture(scope='module')
def fields(members):
    """The `.json` members, by shard."""
    return {
        shard: [json.loads(data) for member, data in content if member.name.endswith('.json')]
        for shard, content in members.items()
    }


def fields_of(fields, prefix):
    return [record for shard, records in fields.items() if shard.startswith(prefix) for record in records]


@pytest.fixture(scope='module')
def make_catalogue():
    spec = importlib.util.spec_from_file_location('make_catalogue', EXAMPLES / 'make_catalogue.py')
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def test_catalogue_is_small():
    assert sum(path.stat().st_size for path in CATALOGUE.iterdir()) <= 12_000_000


def test_shard_names_tell_who_is_indexed_and_who_asks():
    names = [f'{kind}-{number:05d}.tar.gz' for kind in KINDS for number in range(4)]
    assert [shard.name for shard in SHARDS] == names


def test_counts(fields):
    records = fields_of(fields, '')
    assert Counter(record['style'] for record in records) == RECORDS_BY_STYLE
    assert len({record['labels']['item'] for record in records}) == 1616
    assert len({record['labels']['coarse'] for record in records}) == 8
    assert len({record['labels']['fine'] for record in records}) == 87


def test_left_out_categories(fields):
    records = fields_of(fields, '')
    assert not {record['labels']['coarse'] for record in records} & {'Flags', 'Component'}
    items_by_fine = Counter(record['labels']['fine'] for record in fields_of(fields, 'query-'))
    assert min(items_by_fine.values()) >= 5


def test_ids_are_unique(fields):
    ids = [record['id'] for record in fields_of(fields, '')]
    assert len(set(ids)) == len(ids)


def test_every_record_is_an_image_beside_its_fields(members):
    for content in members.values():
        assert len(content) % 2 == 0
        for (image, _), (sidecar, data) in zip(content[::2], content[1::2], strict=True):
            record = json.loads(data)
            assert (image.name, sidecar.name) == (f'{record["id"]}.webp', f'{record["id"]}.json')
            assert set(record) == {'id', 'labels', 'caption', 'style'}
            assert set(record['labels']) == {'coarse', 'fine', 'item'}
            assert record['id'] == f'{record["style"]}/{record["labels"]["item"]}'
            assert record['caption']
            assert record['caption'] == record['caption'].lower()


def test_labels_agree_between_styles(fields):
    described = {(str(record['labels']), record['caption']) for record in fields_of(fields, '')}
    assert len(described) == 1616


def test_every_image_opens_and_is_small(members):
    for content in members.values():
        for member, data in content[::2]:
            with Image.open(io.BytesIO(data)) as image:
                image.load()
                assert max(image.size) <= 96, member.name
                assert image.mode == 'RGBA', member.name


def test_every_query_has_an_answer(fields):
    answers = Counter(record['labels']['item'] for record in fields_of(fields, 'index-'))
    asked = {record['labels']['item'] for record in fields_of(fields, 'query-')}
    assert asked == set(answers)
    # Fluent has no drawing of 37 items, most of them newer than the package.
    assert Counter(answers.values()) == {2: 1579, 1: 37}


def test_every_shard_is_a_sample_of_the_catalogue(fields):
    for records in fields.values():
        assert len(records) > 390
        categories = Counter(record['labels']['coarse'] for record in records)
        assert len(categories) == 8
        assert max(categories.values()) < len(records) / 3


def test_shards_carry_no_time_or_owner(members):
    for shard in SHARDS:
        assert shard.read_bytes()[4:8] == bytes(4)
        for member, _ in members[shard.name]:
            assert (member.mtime, member.uid, member.gid, member.uname, member.gname) == (0, 0, 0, '', '')


def test_packing_again_gives_the_same_bytes(make_catalogue, members):
    shard = CATALOGUE / 'query-twitter-00000.tar.gz'
    packed = make_catalogue.pack_shard((member.name, data) for member, data in members[shard.name])
    assert packed == gzip.decompress(shard.read_bytes())


def test_small_pictures_are_not_enlarged(make_catalogue):
    sizes = {}
    for side in (64, 256):
        picture = io.BytesIO()
        Image.new('RGBA', (side, side // 2), (200, 30, 30, 128)).save(picture, 'PNG')
        encoded = make_catalogue.encode_picture(picture.getvalue())
        sizes[side] = Image.open(io.BytesIO(encoded)).size
    assert sizes == {64: (64, 32), 256: (96, 48)}
