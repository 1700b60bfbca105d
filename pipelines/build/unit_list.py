"""What a build reads, listed in files of its version before it begins: the input files, and the work units.

They are not part of the job's graph, because a catalogue may have more of them than a runner accepts in a graph.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import pyarrow as pa

from pipelines import files
from pipelines.index.code_tables import INPUTS
from pipelines.index.manifest import DataFile
from pipelines.index.versions import INPUTS_PATH, STAGING_FOLDER, Version
from pipelines.inputs.shards import InputFile, WorkUnit

NAME = f'{STAGING_FOLDER}/work-units.parquet'  # below the version's folder, until the version is finished
SCHEMA = pa.schema(
    [
        ('number', pa.int64()),
        ('format', pa.string()),
        ('paths', pa.list_(pa.binary())),  # names of files need not be UTF-8
        ('row_groups', pa.list_(pa.int64())),
        ('root', pa.binary()),
        ('state', pa.string()),
        ('base_part', pa.int64()),
        ('base_parts', pa.list_(pa.int64())),
    ]
)


def write_inputs(version: Version, inputs: Sequence[InputFile]) -> DataFile:
    """Write the list of files that a build reads into its version, before the build."""
    paths = [i.path.encode(errors='backslashreplace').decode() for i in inputs]  # names need not be UTF-8
    columns = [paths, [i.size for i in inputs], [i.mtime for i in inputs], [i.generation for i in inputs]]
    arrays = [pa.array(c, f.type) for c, f in zip(columns, INPUTS, strict=True)]
    table = pa.Table.from_arrays(arrays, schema=INPUTS)
    return version.write(INPUTS_PATH, len(table), files.table_bytes(table))


def write_unit_list(version: Version, units: Sequence[WorkUnit]) -> int:
    """Write the work units of a build into its version, before the build; returns how many there are."""
    rows = [
        {
            **dataclasses.asdict(unit),
            'paths': [path.encode(errors='surrogateescape') for path in unit.paths],
            'root': unit.root.encode(errors='surrogateescape'),
        }
        for unit in units
    ]
    files.write_bytes(version.path(NAME), files.table_bytes(pa.Table.from_pylist(rows, SCHEMA)))
    return len(rows)


def read_unit_list(version: Version) -> list[WorkUnit]:
    """The work units that were written into a version.

    Raises:
        OSError: there is no such file any more, or it is damaged.
    """
    return [
        WorkUnit(
            row['number'],
            row['format'],
            tuple(path.decode(errors='surrogateescape') for path in row['paths']),
            None if row['row_groups'] is None else tuple(row['row_groups']),
            row['root'].decode(errors='surrogateescape'),
            row['state'],
            row['base_part'],
            tuple(row['base_parts']),
        )
        for row in files.read_table(version.path(NAME)).to_pylist()
    ]
