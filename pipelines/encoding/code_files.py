"""Codes out of Parquet files with `image_id` and `code`, for indexes and queries without images or a model.

Other Parquet columns are ignored. Images are read by `inputs/shards.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from hashing_model.codes.spec import CodeSpec
from hashing_model.errors import InputError
from pipelines.encoding.encode import EncodedUnit
from pipelines.index.code_tables import codes_from_arrow, images_schema
from pipelines.inputs.opening import open_input
from pipelines.inputs.shards import PARQUET, InputFile, WorkUnit, list_inputs
from pipelines.records import MISSING_ID, SPARE_BITS_SET, WRONG_CODE_LENGTH, Reject, Source

UNIT_ROWS = 2_000_000
FOOTER_THREADS = 16
COLUMNS = ('image_id', 'code')


def list_code_units(patterns: Sequence[str]) -> tuple[list[WorkUnit], list[InputFile]]:
    """Work units (runs of row groups of about 2 million rows) of the Parquet files that match, and those files.

    Raises:
        InputError: nothing matches, there are no rows, or a file is not Parquet with columns `image_id` and `code`.
    """
    inputs = list_inputs(patterns, [PARQUET])
    paths = [file.path for file in inputs]
    with ThreadPoolExecutor(FOOTER_THREADS) as pool:
        found = zip(paths, pool.map(_row_group_runs, paths), strict=True)
        runs = [(path, run) for path, of_path in found for run in of_path]
    units = [WorkUnit(number, PARQUET, (path,), run) for number, (path, run) in enumerate(runs)]
    if not units:
        raise InputError(f'the files of {patterns[0]} hold no codes')
    return units, inputs


def code_bytes(units: Sequence[WorkUnit]) -> int:
    """The most frequent length in bytes of the codes in the first unit that has any codes.

    Raises:
        InputError: there is no code at all.
    """
    for unit in units:
        codes = _read(unit)[0]['code'].drop_null()
        if len(codes):
            lengths = pc.binary_length(codes.cast(pa.binary())).to_numpy()
            found, counts = np.unique(lengths, return_counts=True)
            most = found[counts == counts.max()]
            return int(lengths[0] if lengths[0] in most else most[0])
    raise InputError('the code files hold no codes')


def read_codes(unit: WorkUnit, spec: CodeSpec) -> EncodedUnit:
    """Rows of one unit as image rows without digest, size, labels and caption.

    A row without id, or whose code has another length than the spec's or bits beyond its own, is rejected.
    """
    table, first = _read(unit)
    ids, codes = table['image_id'], table['code'].cast(pa.binary())
    members = pc.cast(pa.array(np.arange(first, first + len(table))), pa.string())
    no_id = pc.fill_null(pc.equal(ids, ''), True).to_numpy()
    wrong_length = pc.fill_null(pc.not_equal(pc.binary_length(codes), spec.num_bytes), True).to_numpy()
    spare_bits = _has_spare_bits(codes, ~wrong_length, spec)

    def rejects(mask: NDArray[np.bool_], reason: str, detail: Callable[[int], str]) -> Iterator[Reject]:
        for i in np.flatnonzero(mask).tolist():
            yield Reject(Source(unit.paths[0], members[i].as_py()), reason, detail(i), ids[i].as_py() or None)

    found = [
        *rejects(no_id, MISSING_ID, lambda _: 'image_id is null or empty'),
        *rejects(
            wrong_length & ~no_id,
            WRONG_CODE_LENGTH,
            lambda i: f'code has {len(codes[i].as_py() or b"")} bytes; the index has codes of {spec.num_bytes} bytes',
        ),
        *rejects(
            spare_bits & ~no_id, SPARE_BITS_SET, lambda _: f'bits are set beyond the {spec.bits} of the code spec'
        ),
    ]
    good = pa.array(~(no_id | wrong_length | spare_bits))
    schema = images_schema(spec.num_bytes)
    kept = members.filter(good)
    shard = pa.DictionaryArray.from_arrays(np.zeros(len(kept), np.int8), [unit.paths[0]]).cast(pa.string())
    columns = {
        'image_id': ids.filter(good),
        'source': pa.StructArray.from_arrays([shard, kept], fields=list(schema.field('source').type)),
        'code': codes.filter(good).combine_chunks().cast(pa.binary(spec.num_bytes)),
    }
    empty = {f.name: pa.nulls(len(kept), f.type) for f in schema if f.name not in columns}
    images = pa.table({**columns, **empty}).select(schema.names).cast(schema)
    return EncodedUnit(images, tuple(found), len(table))


def read_query_codes(unit: WorkUnit, spec: CodeSpec) -> tuple[list[str], NDArray[np.uint8]]:
    """Ids and codes uint8 [N, B] of one unit of queries.

    Raises:
        InputError: a row without id or with a code of another length; unlike images, queries are never rejected row by
            row.
    """
    encoded = read_codes(unit, spec)
    for reject in encoded.rejects:
        raise InputError(f'{reject.source.shard}: row {reject.source.member}: {reject.detail}')
    return encoded.images['image_id'].to_pylist(), codes_from_arrow(encoded.images['code'])


def _row_group_runs(path: str) -> list[tuple[int, int]]:
    """Runs of row groups [first, last) of one file, of about UNIT_ROWS rows each, after a look at its columns."""
    with open_input(path) as file:
        try:
            metadata = pq.ParquetFile(file).metadata
            schema = metadata.schema.to_arrow_schema()
        except (pa.ArrowInvalid, OSError) as e:
            raise InputError(f'{path} is not a Parquet file: {e}') from e
    missing = [c for c in COLUMNS if c not in schema.names]
    if missing:
        raise InputError(f'{path} has no column {missing[0]}; it has {", ".join(schema.names)}')
    id_type, code_type = (schema.field(c).type for c in COLUMNS)
    if not _is_one_of(code_type, pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary):
        raise InputError(f'column code of {path} is {code_type}; binary is needed')
    value_type = id_type.value_type if pa.types.is_dictionary(id_type) else id_type
    if not _is_one_of(value_type, pa.types.is_string, pa.types.is_large_string, pa.types.is_integer):
        raise InputError(f'column image_id of {path} is {id_type}; text or integers are needed')
    runs = []
    start, rows = 0, 0
    for group in range(metadata.num_row_groups):
        rows += metadata.row_group(group).num_rows
        if rows >= UNIT_ROWS or group + 1 == metadata.num_row_groups:
            runs.append((start, group + 1))
            start, rows = group + 1, 0
    return runs


def _is_one_of(type_: pa.DataType, *kinds: Callable[[pa.DataType], bool]) -> bool:
    return any(kind(type_) for kind in kinds)


def _read(unit: WorkUnit) -> tuple[pa.Table, int]:
    """The ids (as text) and codes of a unit, and the number of its first row in its file."""
    first, last = unit.row_groups or (0, 0)
    try:
        with open_input(unit.paths[0]) as file:
            parquet = pq.ParquetFile(file)
            before = sum(parquet.metadata.row_group(group).num_rows for group in range(first))
            table = parquet.read_row_groups(list(range(first, last)), columns=list(COLUMNS))
            table.validate(full=True)  # Arrow takes any bytes for text
    except (pa.ArrowInvalid, OSError) as e:
        raise OSError(f'cannot read {unit.shard}: {e}') from e
    return pa.table({'image_id': table['image_id'].cast(pa.string()), 'code': table['code']}), before


def _has_spare_bits(codes: pa.ChunkedArray, right_length: NDArray[np.bool_], spec: CodeSpec) -> NDArray[np.bool_]:
    """Which codes, among those of the right length, have bits set beyond the spec's."""
    mask = np.zeros(len(codes), bool)
    last = codes_from_arrow(codes.filter(pa.array(right_length)).cast(pa.binary(spec.num_bytes)))[:, -1]
    mask[right_length] = last & ((1 << (spec.num_bytes * 8 - spec.bits)) - 1) != 0
    return mask
