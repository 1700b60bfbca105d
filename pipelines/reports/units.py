"""Sizes, counts and durations in words."""

from __future__ import annotations


def describe_size(count: float) -> str:
    """Bytes with a unit.

    >>> describe_size(2_500_000)
    '2.5 MB'
    """
    for unit in ('B', 'kB', 'MB', 'GB'):
        if count < 1000:
            return f'{count:.0f} {unit}' if unit == 'B' else f'{count:.1f} {unit}'
        count /= 1000
    return f'{count:.1f} TB'


def describe_count(number: float) -> str:
    """A count in full, or of three digits and a word.

    >>> describe_count(12_345), describe_count(2_500_000), describe_count(1e10)
    ('12,345', '2.5 million', '10 billion')
    """
    for size, word in ((1e9, 'billion'), (1e6, 'million')):
        if number >= size:
            return f'{float(f"{number / size:.3g}"):,g} {word}'
    return f'{number:,.0f}'


def describe_hours(hours: float) -> str:
    """Hours to two digits at least.

    >>> describe_hours(0.01234), describe_hours(1234.56)
    ('0.012', '1,235')
    """
    return f'{hours:.2g}' if hours < 100 else f'{hours:,.0f}'
