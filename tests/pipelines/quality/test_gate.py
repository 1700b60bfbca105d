"""The gate: each check by its numbers, made to fail by real builds, and what becomes of a version that fails."""

import dataclasses
import json
from fractions import Fraction

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hashing_model.codes.spec import CodeSpec
from hashing_model.errors import BuildError, GateError
from hashing_model.evaluation import code_health
from hashing_model.model import HashModel
from pipelines import files
from pipelines.build.publish import publish_version
from pipelines.cli.main import main
from pipelines.index import code_tables, versions
from pipelines.index.code_tables import CodeRows, codes_from_arrow, codes_to_arrow
from pipelines.index.current import Current
from pipelines.quality import gate
from pipelines.quality.gate import (
    Limits,
    Served,
    enforce,
    entropy,
    equal_codes,
    fewer_rows,
    judge,
    map_loss,
    readable_files,
    reject_rate,
    self_retrieval,
)
from pipelines.quality.gate import read_served as read_served_version
from tests.helpers.make_index import (
    PORTABLE,
    TWO_PROCESSES,
    build_by_hand,
    catalogue_pictures,
    config_for,
    error_line,
    hand_model,
    make_codes,
    read_served,
    skewed_codes,
    start,
    succeed,
    tar_members,
    write_codes,
    write_part,
    write_tar,
)
from tests.helpers.make_index import assemble as assemble_parts
from tests.helpers.make_versions import small_manifest

CHECKS = ['reject_rate', 'fewer_rows', 'readable_files', 'self_retrieval', 'equal_codes', 'entropy', 'map_loss']
SHARES = st.fractions(0, 1, max_denominator=1000)


def served(rows=1000, spec=None, sample=None):
    return Served('v1', rows, spec or CodeSpec.parse('code=16'), sample)


def quality_of(index, version):
    folder = versions.Version(str(index), version).folder
    return json.loads(files.read_bytes(f'{folder}/quality.json'))


def checks_of(index, version):
    """Name -> (passed, value)."""
    return {c['name']: (c['passed'], c['value']) for c in quality_of(index, version)['checks']}


# Numbers


@given(st.integers(0, 10**9), st.integers(1, 10**9), SHARES)
def test_the_reject_rate_is_rejects_per_record_read(rejected, others, limit):
    read = rejected + others
    check = reject_rate({'rejected': rejected, 'records_read': read}, float(limit))
    assert check.value == rejected / read
    if Fraction(rejected, read) <= limit:
        assert check.passed
    if Fraction(rejected, read) > limit + Fraction(1, 10**12):
        assert not check.passed


def test_a_reject_rate_at_the_limit_passes():
    assert reject_rate({'rejected': 5, 'records_read': 100}, 0.05).passed
    check = reject_rate({'rejected': 51, 'records_read': 1000}, 0.05)
    assert check == gate.Check(
        'reject_rate', 0.051, 0.05, False, '51 of 1,000 records were rejected, 5.1 % (at most 5 %)'
    )


@given(st.integers(1, 10**9), st.integers(1, 10**9), SHARES)
def test_fewer_rows_are_the_share_that_is_missing(rows, before, limit):
    check = fewer_rows(rows, served(before), float(limit))
    missing = Fraction(max(before - rows, 0), before)
    assert check.value == float(missing)
    assert check.passed == (float(missing) <= float(limit))


def test_a_tenth_fewer_passes_and_one_more_does_not():
    assert fewer_rows(900, served(), 0.1).passed
    check = fewer_rows(899, served(), 0.1)
    assert (check.passed, check.value) == (False, 0.101)
    assert check.detail == '899 images, and version v1, which is served, has 1,000: 10.1 % fewer (at most 10 %)'
    assert fewer_rows(5000, served(), 0).passed


@given(st.integers(100, 400), st.integers(1, 400), st.randoms(use_true_random=False))
def test_equal_codes_are_those_of_the_most_frequent_one(count, equal, random):
    equal = min(equal, count)
    values = [7] * equal + list(range(1000, 1000 + count - equal))
    random.shuffle(values)
    check = equal_codes(np.array(values, '>u2').view(np.uint8).reshape(-1, 2), 0.5)
    assert check.value == equal / count
    assert check.passed == (2 * equal <= count)


def codes_of_runs(counts, start=0):
    """16-bit codes: value start + i, counts[i] times."""
    return np.repeat(np.arange(start, start + len(counts)), counts).astype('>u2').view(np.uint8).reshape(-1, 2)


def test_entropy_is_the_least_of_the_segments():
    """The first byte is constant but for one of 100 images: of 4,950 pairs, 99 * 98 / 2 agree there."""
    spec = CodeSpec.parse('coarse=8,fine=8')
    manifest = small_manifest(spec=spec, tables=())
    codes = np.stack([np.arange(100) == 0, np.arange(100)], axis=1).astype(np.uint8)
    check = entropy(codes, manifest, 0.01)
    assert check.value == pytest.approx(-np.log2(98 / 100))
    assert check.passed
    assert check.figures['segments'] == {'coarse': check.value, 'fine': 8.0}
    codes[:, 0] = 3
    check = entropy(codes, manifest, 0.01)
    assert (check.passed, check.value) == (False, 0)
    assert check.detail == 'segment coarse has a collision entropy of 0 bits (at least 0.01)'
    assert entropy(codes, manifest, 0).passed


def test_of_few_images_the_codes_are_not_judged():
    codes = np.zeros((99, 2), np.uint8)
    for check in (equal_codes(codes, 0.5), entropy(codes, small_manifest(), 0.01)):
        assert (check.passed, check.value, check.detail) == (None, None, 'not checked: 99 images are too few')
    assert equal_codes(np.zeros((100, 2), np.uint8), 0.5).passed is False


@pytest.mark.parametrize(
    ('option', 'value', 'wanted'),
    [
        ('--max-reject-rate', '5', 'a share from 0 to 1 is needed'),
        ('--max-fewer-rows', '-0.1', 'a share from 0 to 1 is needed'),
        ('--max-equal-codes', 'nan', 'a share from 0 to 1 is needed'),
        ('--max-map-loss', '2', 'a share from 0 to 1 is needed'),
        ('--min-entropy', '-1', 'bits from 0 to 64 are possible'),
    ],
)
def test_limits_out_of_range_are_refused(option, value, wanted, tmp_path, capsys):
    pattern = write_codes(tmp_path / 'codes.parquet', ['a'], make_codes('uniform', 1, CodeSpec.parse('code=16')))
    command = ['build', '--codes', pattern, '--index', str(tmp_path / 'index')]
    assert main([*command, f'{option}={value}']) == 2
    assert error_line(capsys).startswith(f'grainhash: error: {option} is {value}; {wanted}')
    assert main([*command, '--no-gate', f'{option}={value}']) == 2
    assert error_line(capsys) == f'grainhash: error: {option} does not go with --no-gate, which checks nothing'
    assert not (tmp_path / 'index').exists()


# mAP


def labelled(ids, codes, labels):
    columns = [codes_to_arrow(codes), np.arange(len(ids)), ids, [list(row.items()) for row in labels]]
    schema = code_tables.sample_schema(codes.shape[1])
    return pa.table([pa.array(c, f.type) for c, f in zip(columns, schema, strict=True)], schema=schema)


def chance(others, relevant):
    """The expected average precision of a random order; see `metrics.average_precision`."""
    harmonic = sum(1 / i for i in range(1, others + 1))
    return (harmonic + (relevant - 1) / (others - 1) * (others - harmonic)) / others


SPEC = CodeSpec.parse('fine=8,look=8')


def halves(count, level='fine'):
    """Ids, perfect codes, and labels of two classes."""
    classes = np.arange(count) % 2
    codes = np.repeat(classes[:, None] * 255, 2, axis=1).astype(np.uint8)
    return [f'i{i}' for i in range(count)], codes, [{level: [str(c)]} for c in classes]


def test_the_loss_is_the_difference_of_the_maps_of_the_same_images():
    """Perfect codes were served, and now all are equal: the loss is all that is above chance, of 120 shared images."""
    ids, codes, labels = halves(150)
    old = labelled(ids[30:], codes[30:], [{'fine': ['gone']}] * 120)  # its labels do not count
    new = labelled(ids[149::-1][:145], np.zeros((145, 2), np.uint8), labels[149::-1][:145])
    check = map_loss(new, SPEC, served(spec=SPEC, sample=old), 0.02)
    expected = 1 - chance(119, 59)
    assert check.value == pytest.approx(expected)
    assert check.passed is False
    assert check.figures['images'] == 120
    figures = {'level': 'fine', 'queries': 120, 'served': 1.0, 'new': pytest.approx(chance(119, 59))}
    assert check.figures['measured'] == [{'segments': s, **figures} for s in ('all', 'fine')]
    assert check.detail == (
        f'mAP at level fine, by all segments, is {1 - expected:.3f}; in version v1, which is served, 1.000: '
        f'{100 * expected:.1f} points lost (at most 2)'
    )
    assert map_loss(new, SPEC, served(spec=SPEC, sample=old), check.value).passed


def test_a_gain_is_no_loss():
    ids, codes, labels = halves(120)
    old = labelled(ids, np.zeros((120, 2), np.uint8), labels)
    check = map_loss(labelled(ids, codes, labels), SPEC, served(spec=SPEC, sample=old), 0)
    assert check.passed
    assert check.value == pytest.approx(chance(119, 59) - 1)


def test_a_segment_alone_may_lose_where_all_together_do_not():
    """The bits of `fine` say nothing any more, and those of `look` find all."""
    ids, codes, labels = halves(120)
    worse = codes.copy()
    worse[:, 0] = 0
    sample, old = labelled(ids, worse, labels), labelled(ids, codes, labels)
    check = map_loss(sample, SPEC, served(spec=SPEC, sample=old), 0.02)
    assert [(m['segments'], round(m['served'] - m['new'], 3)) for m in check.figures['measured']] == [
        ('all', 0.0),
        ('fine', round(1 - chance(119, 59), 3)),
    ]
    assert check.passed is False
    assert 'at level fine, by segment fine, is' in check.detail
    other = CodeSpec.parse('coarse=8,look=8')  # of another model, which had no segment `fine`
    check = map_loss(sample, SPEC, served(spec=other, sample=old), 0.02)
    assert [m['segments'] for m in check.figures['measured']] == ['all']


def test_queries_are_the_first_that_have_a_label(monkeypatch):
    monkeypatch.setattr(gate, 'QUERIES', 110)
    ids, codes, labels = halves(300)
    for i in range(0, 300, 2):
        labels[i] = {'fine': [str(i // 2 % 2)]} if i >= 150 else {}
    for i in range(1, 300, 2):
        labels[i] = {}
    sample = labelled(ids, codes, labels)
    monkeypatch.setattr(gate, 'FEW', 75)
    check = map_loss(sample, SPEC, served(spec=SPEC, sample=sample), 0)
    assert [m['queries'] for m in check.figures['measured']] == [75, 75]
    asked = []
    monkeypatch.setattr(gate, 'mean_average_precision', lambda *a: asked.append(a[3].tolist()))
    map_loss(labelled(*halves(300)), SPEC, served(spec=SPEC, sample=sample), 0)
    assert asked == [list(range(110))] * 4


def test_what_cannot_be_compared_is_skipped():
    ids, codes, labels = halves(120)
    sample, spec = labelled(ids, codes, labels), SPEC

    def detail(new, old):
        check = map_loss(new, spec, served(spec=spec, sample=old), 0.02)
        assert (check.passed, check.value) == (None, None)
        return check.detail.removeprefix('not checked: ')

    old = 'the sample of version v1, which is served, has no image ids'
    assert detail(sample, sample.select(['code', 'row'])) == old
    for new, count in (
        (labelled(ids[:99], codes[:99], labels[:99]), 99),  # too few queries
        (labelled([f'j{i}' for i in range(120)], codes, labels), 0),  # other images
        (labelled(ids, codes, [{'fine': [i]} for i in ids]), 120),  # nothing is relevant
        (sample[:0], 0),
    ):
        assert detail(new, sample) == f'too few of {count} images of both versions have labels in common'
    unlabelled = labelled(ids, codes, [{}] * 120)
    assert detail(unlabelled, unlabelled) == 'too few of 120 images of both versions have labels in common'


def test_labels_that_are_gone_fail():
    ids, codes, labels = halves(120)
    before = served(spec=SPEC, sample=labelled(ids, codes, labels))
    check = map_loss(labelled(ids, codes, [{}] * 120), SPEC, before, 0.02)
    assert (check.passed, check.value) == (False, 1.0)
    assert check.detail == 'no image has a label, while those of version v1, which is served, have'


# Files


@pytest.fixture(scope='module')
def built(tmp_path_factory):
    """A version by hand: its config, manifest and sample."""
    index = tmp_path_factory.mktemp('built')
    config = build_by_hand(index, [skewed_codes(n, seed=n) for n in (300, 1, 170)])
    manifest = versions.read_manifest(str(index))
    return config, manifest, config.index_version.read_table(manifest.sample)


@pytest.fixture
def kept(built):
    """`built`, and its files as they were again afterwards."""
    config, manifest, _ = built
    contents = {file.path: files.read_bytes(config.index_version.path(file.path)) for file in manifest.all_files}
    yield built
    for path, content in contents.items():
        files.write_bytes(config.index_version.path(path), content)


def test_a_version_as_built_passes_all_checks_that_can_be_made(built):
    config, manifest, _ = built
    quality = quality_of(config.index, config.version)
    assert (manifest.gate, quality['gate'], quality['served'], quality['format_version']) == (
        'passed',
        'passed',
        None,
        1,
    )
    assert [c['name'] for c in quality['checks']] == CHECKS
    assert [c['passed'] for c in quality['checks']] == [True, None, True, True, True, True, None]
    nothing = 'not checked: no version was served before'
    assert [c['detail'] for c in quality['checks'] if c['passed'] is None] == [nothing, nothing]
    assert files.digest(files.read_bytes(config.index_version.path('quality.json'))) == manifest.quality.digest


def test_every_file_that_cannot_be_opened_or_has_other_rows_is_counted(kept):
    config, manifest, _ = kept
    assert readable_files(config.index_version).passed
    total = len(manifest.data_files)
    partition, images = manifest.tables[2].partitions[0].files[0], manifest.images[1]
    content = files.read_bytes(config.index_version.path(partition.path))
    files.write_bytes(config.index_version.path(partition.path), content[:-4] + b'PAR2')
    other = manifest.images[2]
    files.write_bytes(config.index_version.path(images.path), files.read_bytes(config.index_version.path(other.path)))
    check = readable_files(config.index_version)
    assert (check.value, check.limit, check.passed) == (2, 0, False)
    path = config.index_version.path(images.path)
    assert check.detail == f'2 of {total} files cannot be read, the first: {path} has 170 rows; the manifest says 1'
    files.delete_file(config.index_version.path(images.path))
    assert readable_files(config.index_version).value == 2


def change_partition(config, file, change):
    """Rewrite a partition file with the keys, codes and rows that `change` makes of its own."""
    held = CodeRows.from_table(config.index_version.read_table(file))
    keys, codes, rows = change(held.keys.copy(), held.codes.copy(), held.rows.copy())
    content = files.table_bytes(CodeRows(keys, codes, rows).to_table(), **code_tables.PARTITION_OPTIONS)
    files.write_bytes(config.index_version.path(file.path), content)


def holding(config, manifest, table, row):
    """The file of a table that holds a row."""
    for partition in manifest.tables[table].partitions:
        for file in partition.files:
            if row in config.index_version.read_table(file)['row'].to_pylist():
                return file
    raise AssertionError


@pytest.mark.parametrize('table', range(4))
@pytest.mark.parametrize('what', ['code', 'row', 'key'])
def test_every_table_must_find_every_image_asked(kept, table, what):
    """One row of one table is wrong; the others alone would find the image."""
    config, manifest, sample = kept
    asked = sample[:50]
    assert self_retrieval(config.index_version, asked).passed
    row = asked['row'][7].as_py()

    def change(keys, codes, rows):
        place = rows.tolist().index(row)
        if what == 'code':
            codes[place] ^= 0x11
        if what == 'row':
            rows[place] = 1 << 40
        if what == 'key':
            keys[:] = 0 if keys.min() else (1 << manifest.tables[table].substring.bits) - 1
        return keys, codes, rows

    change_partition(config, holding(config, manifest, table, row), change)
    check = self_retrieval(config.index_version, asked)
    assert check.passed is False
    assert check.value >= 1
    assert ' of 50 images do not find themselves, the first: ' in check.detail
    assert check.detail.endswith(f' in table {table}')
    if what != 'key':
        assert check.value == 1
        assert f'the first: {asked["image_id"][7].as_py()} in' in check.detail


def test_a_file_that_cannot_be_searched_is_named(kept):
    config, manifest, sample = kept
    row = sample['row'][0].as_py()
    file = holding(config, manifest, 1, row)
    content = bytearray(files.read_bytes(config.index_version.path(file.path)))
    start = pq.read_metadata(config.index_version.path(file.path)).row_group(0).column(2).data_page_offset
    content[start : start + 20] = bytes(20)  # the header of the first page of `row`; the footer is as it was
    files.write_bytes(config.index_version.path(file.path), bytes(content))
    check = self_retrieval(config.index_version, sample[:20])
    assert check.passed is False
    assert f' in table 1: cannot read {config.index_version.path(file.path)}: ' in check.detail


def test_images_of_one_code_find_themselves_among_the_others(tmp_path):
    """A third of 400 images have one code; each that asks must be found by its own row."""
    config = build_by_hand(tmp_path, [skewed_codes(400, SPEC)], SPEC)
    manifest = versions.read_manifest(str(tmp_path))
    sample = config.index_version.read_table(manifest.sample)
    assert code_health.collisions(codes_from_arrow(sample['code']), 1)[0].size > 80
    check = self_retrieval(config.index_version, sample)
    assert (check.value, check.passed) == (0, True)


# What becomes of the version


def judged(config, manifest, sample, limits, believed=None):
    unjudged = dataclasses.replace(manifest, gate=None, quality=None)
    return judge(config.index_version.with_manifest(unjudged), sample, limits, believed)


def test_a_version_that_is_not_judged_says_so(kept):
    config, manifest, sample = kept
    found = judged(config, manifest, sample, None, config.version)
    assert found.gate == 'skipped'
    assert quality_of(config.index, config.version) == {
        'format_version': 1, 'gate': 'skipped', 'served': config.version, 'checks': []
    }  # fmt: skip
    enforce(config.index_version.with_manifest(found))


def test_a_failed_version_tells_all_that_failed_and_how_to_serve_it(kept):
    config, manifest, sample = kept
    found = judged(config, manifest, sample, Limits(max_equal_codes=0.1, min_entropy=9), config.version)
    assert found.gate == 'failed'
    checks = {c['name']: c for c in quality_of(config.index, config.version)['checks']}
    assert [name for name, c in checks.items() if c['passed'] is False] == ['equal_codes', 'entropy']
    with pytest.raises(GateError) as error:
        enforce(config.index_version.with_manifest(found))
    assert str(error.value) == (
        f'version {config.version} is finished but not served, because it failed its gate: '
        f'{checks["equal_codes"]["detail"]}; {checks["entropy"]["detail"]}; '
        f'see {config.index_version.path("quality.json")}; '
        f'grainhash promote {config.index} {config.version} serves it all the same'
    )
    assert (checks['fewer_rows']['passed'], checks['map_loss']['value']) == (True, 0)


@pytest.mark.parametrize('version', ['gone', 'a line\nand one', ''])
def test_a_served_version_that_cannot_be_read_does_not_keep_its_successor_out(built, version):
    config, _, _ = built
    found, why = read_served_version(config.index, version)
    assert found is None
    assert why.startswith(f'version {version}, which is served, cannot be read: ')


@pytest.mark.beam
def test_a_repeated_step_fails_again_and_changes_nothing(tmp_path, monkeypatch):
    errors, contents = [], []

    def publish_twice(*arguments):
        for _ in range(2):
            with pytest.raises(GateError) as error:
                publish_version(*arguments)
            errors.append(str(error.value))
            contents.append(files.read_bytes(arguments[1].index_version.manifest_path))

    monkeypatch.setattr('tests.helpers.make_index.publish_version', publish_twice)
    config = build_by_hand(tmp_path, [skewed_codes(120)], rejected=30)
    assert errors[0] == errors[1]
    assert contents[0] == contents[1]
    assert '30 of 150 records were rejected, 20 % (at most 5 %)' in errors[0]
    assert not (tmp_path / 'CURRENT').exists()
    assert main(['verify', str(tmp_path), '--version', config.version]) == 0


def test_versions_are_compared_with_the_one_believed_to_be_served(tmp_path):
    """As it was when the build began, whatever `CURRENT` names in between."""
    first, second = (build_by_hand(tmp_path, [skewed_codes(n)]).version for n in (100, 103))
    assert [quality_of(tmp_path, v)['served'] for v in (first, second)] == [None, first]
    config = dataclasses.replace(config_for(tmp_path, 1), believed=Current(first, 1))
    with pytest.raises(BuildError, match=f'names {second} now, not {first}'):
        assemble_parts(config, [write_part(0, skewed_codes(95), config)])
    assert quality_of(tmp_path, config.version)['served'] == first
    assert checks_of(tmp_path, config.version)['fewer_rows'] == (True, 0.05)


# Builds


def build_codes(folder, codes, *options, nameless=0):
    """Build an index of codes, the last of which have no id: the exit code, and the new version's manifest."""
    ids = [f'i{i}' if i < len(codes) - nameless else None for i in range(len(codes))]
    pattern = write_codes(folder / f'{len(codes)}-{nameless}.parquet', ids, codes)
    index = str(folder / 'index')
    before = {f.version for f in versions.list_versions(index)} if (folder / 'index').exists() else set()
    code = main(['build', '--codes', pattern, '--index', index, *options])
    (new,) = (f for f in versions.list_versions(index) if f.version not in before)
    return code, new.manifest


def current(folder):
    return versions.look(str(folder / 'index')).text


def failed_checks(manifest, folder):
    return [n for n, (passed, _) in checks_of(folder / 'index', manifest.version).items() if passed is False]


def uniform(count, spec=SPEC):
    return make_codes('uniform', count, spec)


@pytest.mark.beam
def test_half_the_rows_removed_fail_the_gate_and_can_be_promoted_by_hand(tmp_path, capsys):
    codes = uniform(400)
    assert build_codes(tmp_path, codes)[0] == 0
    before = current(tmp_path)
    capsys.readouterr()
    code, manifest = build_codes(tmp_path, codes[:200])
    assert (code, manifest.rows, manifest.gate) == (3, 200, 'failed')
    line = error_line(capsys)
    assert f'200 images, and version {before}, which is served, has 400: 50 % fewer (at most 10 %)' in line
    assert current(tmp_path) == before
    assert failed_checks(manifest, tmp_path) == ['fewer_rows']
    assert not list((tmp_path / 'index').rglob('staging'))
    succeed('verify', tmp_path / 'index', '--version', manifest.version)
    succeed(*line.split('; grainhash ')[1].split(' serves')[0].split())
    assert current(tmp_path) == manifest.version


@pytest.mark.beam
def test_with_another_limit_it_is_served(tmp_path):
    build_codes(tmp_path, uniform(400))
    code, manifest = build_codes(tmp_path, uniform(400)[:200], '--max-fewer-rows', '0.5')
    assert (code, manifest.gate, current(tmp_path)) == (0, 'passed', manifest.version)


@pytest.mark.beam
def test_without_the_gate_it_is_served_and_known_by_it(tmp_path, capsys):
    code, manifest = build_codes(tmp_path, uniform(150), '--no-gate', nameless=60)
    assert (code, manifest.gate, current(tmp_path)) == (0, 'skipped', manifest.version)
    assert quality_of(tmp_path / 'index', manifest.version)['checks'] == []
    capsys.readouterr()
    succeed('versions', tmp_path / 'index')
    assert capsys.readouterr().out.splitlines()[1].split()[-2:] == ['skipped', 'served']
    succeed('inspect', tmp_path / 'index')
    assert 'gate      skipped' in capsys.readouterr().out.splitlines()
    succeed('verify', tmp_path / 'index')


@pytest.mark.beam
def test_a_first_version_that_fails_leaves_nothing_served(tmp_path, capsys):
    code, manifest = build_codes(tmp_path, uniform(150), nameless=30)
    assert (code, failed_checks(manifest, tmp_path), current(tmp_path)) == (3, ['reject_rate'], None)
    assert '30 of 150 records were rejected, 20 % (at most 5 %)' in error_line(capsys)
    succeed('versions', tmp_path / 'index')
    assert capsys.readouterr().out.splitlines()[1].split()[-2:] == ['failed', 'finished']
    assert main(['inspect', str(tmp_path / 'index')]) == 2
    assert build_codes(tmp_path, uniform(140))[0] == 0


@pytest.mark.beam
def test_codes_that_are_all_equal_fail_the_gate(tmp_path, capsys):
    code, manifest = build_codes(tmp_path, np.tile(uniform(1), (130, 1)), '--segments', 'fine=8,look=8')
    assert (code, failed_checks(manifest, tmp_path)) == (3, ['equal_codes', 'entropy'])
    line = error_line(capsys)
    assert '130 of 130 images in the sample have one and the same code, 100 % (at most 50 %)' in line
    assert 'segment fine has a collision entropy of 0 bits (at least 0.01)' in line


@pytest.mark.beam
def test_a_segment_in_which_all_are_equal_fails_the_gate(tmp_path):
    codes = np.random.default_rng(0).integers(0, 256, (130, 2), np.uint8)
    codes[:, 0] = 5
    code, manifest = build_codes(tmp_path, codes, '--segments', 'fine=8,look=8')
    assert (code, failed_checks(manifest, tmp_path)) == (3, ['entropy'])


@pytest.mark.beam
@pytest.mark.parametrize(('failing', 'place'), [('readable_files', 'footer'), ('self_retrieval', 'codes')])
def test_a_partition_damaged_after_it_was_written_fails_the_gate(tmp_path, monkeypatch, failing, place):
    """The manifest has the size and the digest of what should have been written."""
    write = files.write_bytes

    def damage(uri, content, **options):
        if '/codes/table=0/prefix=1/' not in uri:
            return write(uri, content, **options)
        damaged = bytearray(content)
        if place == 'footer':
            damaged[-4:] = b'PAR2'
        else:
            column = pq.ParquetFile(pa.BufferReader(content)).metadata.row_group(0).column(1)
            end = column.data_page_offset + column.total_compressed_size
            damaged[end - 100 : end] = bytes(100)  # 50 codes of 2 bytes
        return write(uri, bytes(damaged), **options)

    monkeypatch.setattr(files, 'write_bytes', damage)
    code, manifest = build_codes(tmp_path, uniform(300))
    assert code == 3
    assert failing in failed_checks(manifest, tmp_path)
    assert ('readable_files' in failed_checks(manifest, tmp_path)) == (place == 'footer')
    assert current(tmp_path) is None
    assert main(['verify', str(tmp_path / 'index'), '--version', manifest.version]) == 1


@pytest.mark.process
@pytest.mark.parametrize('options', [(), TWO_PROCESSES, PORTABLE], ids=['local', 'two processes', 'portable runner'])
def test_the_exit_code_is_3_on_any_runner(tmp_path, options):
    ids = [f'i{i}' if i % 5 else None for i in range(200)]
    pattern = write_codes(tmp_path / 'codes.parquet', ids, uniform(200))
    done = start('build', '--codes', pattern, '--index', tmp_path / 'index', *options)
    assert done.returncode == 3, done.stderr
    (found,) = versions.list_versions(str(tmp_path / 'index'))
    path = versions.Version(str(tmp_path / 'index'), found.version).path('quality.json')
    assert [line for line in done.stderr.splitlines() if line.startswith('grainhash: error')] == [
        f'grainhash: error: version {found.version} is finished but not served, because it failed its gate: 40 of 200 '
        f'records were rejected, 20 % (at most 5 %), 40 of them as missing_id; see {path}; grainhash promote '
        f'{tmp_path / "index"} {found.version} serves it all the same'
    ]
    assert not (tmp_path / 'index' / 'CURRENT').exists()
    assert start('promote', tmp_path / 'index', found.version).returncode == 0
    assert read_served(tmp_path / 'index').gate == 'failed'


# Builds of images


@pytest.fixture(scope='module')
def catalogue(tmp_path_factory):
    """120 labelled pictures, a model of them, and an index."""
    folder = tmp_path_factory.mktemp('catalogue')
    pictures = catalogue_pictures(120)
    write_tar(folder / 'pictures.tar', tar_members(pictures))
    hand_model(pictures).save(folder / 'model')
    succeed(*build_images(folder))
    return folder, pictures


def build_images(folder, name='pictures.tar'):
    return ['build', *('--images', folder / name, '--model', folder / 'model', '--index', folder / 'index')]


def newest(folder):
    known = [f.manifest for f in versions.list_versions(str(folder / 'index')) if f.version != current(folder)]
    return known[-1]


def no_code(features):
    return np.zeros((len(features), 4), np.uint8)


def any_code(features):
    return np.random.default_rng(len(features)).integers(0, 256, (len(features), 4), np.uint8)


@pytest.mark.beam
@pytest.mark.parametrize(
    ('codes', 'failing'), [(no_code, {'equal_codes', 'entropy', 'map_loss'}), (any_code, {'map_loss'})]
)
def test_a_worse_model_fails_the_gate(catalogue, monkeypatch, capsys, codes, failing):
    """What the same pictures have as codes says less of their labels, or nothing."""
    folder, _ = catalogue
    before = current(folder)
    monkeypatch.setattr(HashModel, 'encode_features', lambda self, groups: codes(groups['color']))
    assert main([str(word) for word in (*build_images(folder), '--full')]) == 3
    assert set(failed_checks(newest(folder), folder)) == failing
    assert f'in version {before}, which is served, 0.' in error_line(capsys)
    assert current(folder) == before


@pytest.mark.beam
def test_broken_pictures_fail_the_gate(catalogue, capsys):
    """One of five is cut in half."""
    folder, pictures = catalogue
    before = current(folder)
    cut = ('0.webp', '5.webp')
    members = [(n, d[: len(d) // 2] if n.endswith(cut) else d) for n, d in tar_members(pictures)]
    write_tar(folder / 'broken.tar', members)
    assert main([str(word) for word in build_images(folder, 'broken.tar')]) == 3
    line = error_line(capsys)
    assert '24 of 120 records were rejected, 20 % (at most 5 %)' in line
    assert '96 images, and version' in line
    assert current(folder) == before
    checks = checks_of(folder / 'index', newest(folder).version)
    assert checks['map_loss'] == (None, None)  # 96 are too few
    assert checks['self_retrieval'] == (True, 0)


@pytest.mark.beam
def test_the_same_pictures_pass_and_lose_nothing(catalogue):
    folder, _ = catalogue
    before = current(folder)
    succeed(*build_images(folder))
    quality = quality_of(folder / 'index', current(folder))
    assert (quality['gate'], quality['served']) == ('passed', before)
    assert [c['passed'] for c in quality['checks']] == [True] * 7
    (loss,) = [c for c in quality['checks'] if c['name'] == 'map_loss']
    assert loss['value'] == 0
    assert {m['level'] for m in loss['figures']['measured']} == {'coarse', 'fine'}
