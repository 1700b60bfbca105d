"""Manifests and versions of an index, written without any data files."""

import dataclasses

from hashing_model.codes.spec import CodeSpec
from pipelines.index.layout import Substring
from pipelines.index.manifest import DataFile, Manifest, Partition, Table
from pipelines.index.versions import publish


def small_manifest(**changes):
    files = [DataFile(f'codes/{i}.parquet', 3 + i, 1000 + i) for i in range(3)]
    partitions = (Partition(0, '0', (files[0], files[1])), Partition(0, '01', ()), Partition(0, '1', (files[2],)))
    manifest = Manifest(
        version='20260101T000000Z-abcdef',
        created='2026-01-01T00:00:00+00:00',
        spec=CodeSpec.parse('coarse=8,look=16'),
        model={'fingerprint': 'f' * 64, 'method': 'itq'},
        tables=(Table(Substring(0, 0, 8), (0.1, 0.25, 1.0), partitions), Table(Substring(1, 8, 16), (), ())),
        images=(DataFile('images/0.parquet', 7, 10), DataFile('images/1.parquet', 5, 11)),
        rejects=(DataFile('rejects/1.parquet', 2, 12),),
        inputs=DataFile('inputs.parquet', 3, 77),
        counters={'records_read': 14, 'indexed': 12, 'reasons': {'empty': 2}},
        libraries={'numpy': '2'},
        sample=DataFile('sample.parquet', 12, 13),
    )
    return dataclasses.replace(manifest, **changes)


def write_version(index, version, **changes):
    manifest = small_manifest(version=version, **changes)
    folder = index / 'versions' / version
    folder.mkdir(parents=True)
    (folder / 'manifest.json').write_bytes(manifest.dumps())
    return manifest


def three_versions(folder):
    """Finished versions v1 to v3, the older the smaller; v2 is served, and a dead build has left a folder.

    v1 is from before there was a gate, and v3 has failed it.
    """
    for i, gate in ((1, None), (2, 'passed'), (3, 'failed')):
        write_version(folder, f'v{i}', created=f'2026-01-0{i}T00:00:00+00:00', gate=gate)
    (folder / 'versions' / 'dead').mkdir()
    publish(str(folder), 'v2')
    return str(folder)
