"""The manifest: it survives the disk, and nothing else passes for one."""

import dataclasses
import json

import pytest

from hashing_model.errors import InputError
from pipelines.index.manifest import DataFile, Manifest
from tests.helpers.make_versions import small_manifest

LATER = 'model_files', 'units', 'changes', 'gate', 'quality', 'build'  # fields that the first manifests had not


def as_json():
    """A manifest from before they had digests, as plain values."""
    value = json.loads(small_manifest().dumps())
    del value['digest']
    return value


def changed(**changes):
    return json.dumps({**as_json(), **changes}).encode()


def without(name):
    value = as_json()
    del value[name]
    return json.dumps(value).encode()


@pytest.mark.parametrize(
    'changes',
    [{}, {'model': None, 'rejects': ()}, {'gate': 'failed', 'quality': DataFile('quality.json', 0, 9, 'ab')}],
)
def test_a_manifest_survives_its_json(changes):
    manifest = small_manifest(**changes)
    assert Manifest.loads(manifest.dumps()) == manifest
    assert manifest.dumps().isascii()


def test_a_manifest_from_before_digests_is_read():
    value = as_json()
    for name in LATER:
        del value[name]
    files = [*value['images'], *value['rejects'], value['inputs'], value['sample']]
    files += [f for t in value['tables'] for p in t['partitions'] for f in p['files']]
    for file in files:
        del file['digest']
    assert Manifest.loads(json.dumps(value, indent=1).encode()) == small_manifest()


def test_no_byte_of_a_manifest_can_change():
    content = small_manifest().dumps()
    assert list(json.loads(content))[-1] == 'digest'
    for place in range(len(content)):
        for flip in (0x01, 0x20):
            damaged = bytearray(content)
            damaged[place] ^= flip
            with pytest.raises(InputError):
                Manifest.loads(bytes(damaged))


@pytest.mark.parametrize('added', [b' ', b'\n', b'{}'])
def test_nor_can_bytes_be_added(added):
    with pytest.raises(InputError):
        Manifest.loads(small_manifest().dumps() + added)


def test_rows_are_those_of_the_files():
    manifest = small_manifest()
    assert manifest.rows == 7 + 5
    assert [p.rows for p in manifest.tables[0].partitions] == [3 + 4, 0, 5]


def test_another_format_version_is_refused_by_number():
    with pytest.raises(InputError, match=r'^here has index format 2; this grainhash reads format 1$'):
        Manifest.loads(changed(format_version=2, tables='of another shape'), 'here')


@pytest.mark.parametrize(
    'content',
    [
        b'',
        b'{',
        b'\xff\xfe\x00',
        b'[]',
        b'null',
        b'"text"',
        b'{}',
        small_manifest().dumps()[:-40],
        *(without(field.name) for field in dataclasses.fields(Manifest) if field.name not in LATER),
        changed(unheard_of=1),
        changed(sample={'path': 'x'}),
        changed(quality={'path': 'x'}),
        changed(images=[{'path': 'x', 'rows': 1, 'bytes': 2, 'more': 3}]),
        changed(tables=[[]]),
        changed(tables=[{'substring': {'segment': 0, 'start': 0, 'bits': 8}, 'selectivity': []}]),
        changed(tables=7),
        changed(spec=7),
        changed(spec=[]),
        changed(spec=[{'name': 'a', 'bits': 'many', 'features': []}]),
        changed(spec=[{'name': 'a', 'bits': 0, 'features': []}]),
    ],
)
def test_what_is_no_manifest_is_refused_by_name(content):
    with pytest.raises(InputError, match=r'^over/there\.json is not a manifest of grainhash: '):
        Manifest.loads(content, 'over/there.json')
