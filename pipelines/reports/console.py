"""Where tables and results are printed: standard output for data, standard error for progress."""

from __future__ import annotations

import sys

from rich.console import Console

FILE_WIDTH = 120  # columns of what is not shown on a terminal


def output_console(soft_wrap: bool = False) -> Console:
    """Standard output, plain text: no markup is read in names, and nothing is highlighted.

    Args:
        soft_wrap: leave long lines whole, for the terminal to wrap.
    """
    return Console(
        highlight=False, markup=False, soft_wrap=soft_wrap, width=None if sys.stdout.isatty() else FILE_WIDTH
    )


def progress_console() -> Console:
    """Standard error, for bars that tell how far something is."""
    return Console(stderr=True)
