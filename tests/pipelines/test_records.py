import pytest

from hashing_model.errors import BuildError
from pipelines.records import Tally, describe_reasons


def test_rejects_are_told_by_how_often():
    assert describe_reasons({'empty': 1, 'truncated': 2, 'a': 1}) == '2 truncated, 1 a, 1 empty'
    assert describe_reasons({}) == ''


def test_duplicates_are_counted_apart():
    tally = Tally.of(10, 6, {'truncated': 1, 'duplicate_id': 2, 'empty': 1})
    assert tally == Tally(10, 6, 2, {'empty': 1, 'truncated': 1})
    assert tally.check().rejected == 2
    assert tally.describe('indexed') == (
        '6 of 10 records indexed, 2 with a duplicate id, 2 rejected (1 empty, 1 truncated)'
    )


@pytest.mark.parametrize(
    ('tally', 'message'),
    [
        (Tally(10, 9), 'records are missing: read 10, used 9, rejected 0, duplicates 0'),
        (Tally(10, 9, 1, {'empty': 1}), 'records are missing: read 10, used 9, rejected 1, duplicates 1'),
        (Tally(2, 0, 0, {'empty': 2}), 'none of 2 records could be used: 2 empty'),
        (Tally(2, 0, 2), 'none of 2 records could be used: all are duplicates'),
        (Tally(0, 0), 'none of 0 records could be used: there was none'),
    ],
)
def test_a_tally_that_does_not_add_up_or_used_nothing_is_an_error(tally, message):
    with pytest.raises(BuildError, match=message):
        tally.check()
