"""What compiled loops share: numba's compiler with its cache, the popcount instruction, threads over queries."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic


def compiled(**options: Any) -> Any:
    """`numba.njit` with a cache on disk, or without one where neither the package nor the home can be written."""

    def decorate(function: Any) -> Any:
        try:
            return numba.njit(cache=True, nogil=True, **options)(function)
        except RuntimeError:  # no place for the cache
            return numba.njit(nogil=True, **options)(function)

    return decorate


@intrinsic
def popcount(typing_context: Any, x: Any) -> Any:
    """Set bits of a uint64, by the processor's own instruction."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        return builder.ctpop(args[0])

    return types.uint64(types.uint64), generate


def in_threads(work: Callable[[int, int], None], count: int) -> None:
    """Call work(first, last) on ranges that cover 0 .. count - 1, on all cores."""
    cores = os.cpu_count() or 1
    edges = np.unique(np.linspace(0, count, 8 * cores + 1).astype(int)).tolist()
    with ThreadPoolExecutor(cores) as pool:
        list(pool.map(work, edges[:-1], edges[1:]))
