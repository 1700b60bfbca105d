"""The list of work units: what is written is read, and a build's graph does not grow with it."""

import os

import apache_beam as beam
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hashing_model.codes.spec import CodeSpec
from pipelines import files
from pipelines.build.config import BuildConfig
from pipelines.build.job import define_pipeline
from pipelines.build.unit_list import NAME, read_unit_list, write_unit_list
from pipelines.index.versions import Version
from pipelines.inputs.shards import FORMATS, WorkUnit

names = st.binary(max_size=8).map(os.fsdecode)  # names of files are bytes
numbers = st.integers(0, 2**31)
units = st.builds(
    WorkUnit,
    numbers,
    st.sampled_from(FORMATS),
    st.lists(names, min_size=1, max_size=3).map(tuple),
    st.none() | st.tuples(numbers, numbers),
    names,
    st.text('0123456789abcdef', max_size=8),
    st.none() | numbers,
    st.lists(numbers, max_size=3).map(tuple),
)


@given(st.lists(units, max_size=4))
def test_units_are_read_as_they_were_written(tmp_path_factory, listed):
    version = Version(str(tmp_path_factory.mktemp('index')), 'v')
    assert write_unit_list(version, listed) == len(listed)
    assert read_unit_list(version) == listed


def test_a_list_that_is_gone_is_told(tmp_path):
    with pytest.raises(OSError, match=NAME):
        read_unit_list(Version(str(tmp_path), 'v'))


@pytest.mark.beam
@pytest.mark.parametrize('base', [None, 'before'])
def test_the_graph_of_a_build_does_not_grow_with_its_units(base, tmp_path):
    sizes = []
    for count in (1, 1000):
        units = [WorkUnit(n, 'files', tuple(f'gs://shop/{n:04}/{i:04}.jpg' for i in range(10))) for n in range(count)]
        config = BuildConfig(str(tmp_path), 'made', CodeSpec.default(), count, None, base=base, started=0.0)
        assert write_unit_list(config.index_version, units) == count
        root = beam.Pipeline()
        define_pipeline(root, config)
        sizes.append(len(root.to_runner_api().SerializeToString()))
    assert abs(sizes[1] - sizes[0]) < 500  # 10,000 paths
    assert files.exists(config.index_version.path(NAME))
