"""Runs of parts: successive parts whose ids are split, and whose codes are cut, together.

Otherwise each of many small parts would send a row or two to each of many buckets of ids and partition files.
"""

from __future__ import annotations

import bisect
import dataclasses
import math
from collections.abc import Iterable

RUN_ROWS = 2_000_000  # of a run of several parts at most


@dataclasses.dataclass(frozen=True)
class Runs:
    """How parts are cut into runs.

    Args:
        firsts: the first part of each run, ascending.
        rows: of all parts.
    """

    firsts: tuple[int, ...]
    rows: int

    @classmethod
    def cut(cls, sizes: Iterable[tuple[int, int]]) -> Runs:
        """Runs as long as they can be.

        Args:
            sizes: (part number, rows) of each part, in any order.

        >>> Runs.cut([(0, 900_000), (1, 900_000), (2, 900_000), (3, 5_000_000), (4, 10)]).firsts
        (0, 2, 3, 4)
        """
        firsts: list[int] = []
        rows = total = 0
        for part, size in sorted(sizes):
            if not firsts or rows + size > RUN_ROWS:
                firsts.append(part)
                rows = 0
            rows += size
            total += size
        return cls(tuple(firsts), total)

    def of(self, part: int) -> int:
        """The number of the run that a part is in."""
        return bisect.bisect_right(self.firsts, part) - 1


def count_runs(parts: int, rows: int) -> int:
    """The number of runs of `parts` parts with `rows` rows each."""
    return math.ceil(parts / max(RUN_ROWS // rows, 1))
