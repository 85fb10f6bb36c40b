"""How many pages of a file a row costs, by arithmetic over all rows at once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from engram_tables.storage.extents import Extent, Part
from engram_tables.units import PAGE_BYTES


def touched_pages(parts: Sequence[Part], extents: Iterable[Extent]) -> int:
    """Pages of 4096 bytes, from the start of their files, that the rows of `extents` touch, summed over rows.

    Parts of a row are counted apart, as they are read: two of them in one page are two.

    Notes
    -----
    Exact; the cost does not depend on the number of rows.
    """
    return sum(_pages_of(parts[extent.part_idx], extent) for extent in extents)


def _pages_of(part: Part, extent: Extent) -> int:
    n_pages = extent.n_rows
    # The k-th rows of all cells are equally far apart.
    for within in range(min(part.cell_rows, extent.n_rows)):
        n_cells = -(-(extent.n_rows - within) // part.cell_rows)
        first = extent.offset + within * part.n_bytes
        n_pages += floor_sum(n_cells, PAGE_BYTES, part.cell_bytes, first + part.n_bytes - 1)
        n_pages -= floor_sum(n_cells, PAGE_BYTES, part.cell_bytes, first)
    return n_pages


def floor_sum(n_terms: int, divisor: int, step: int, first: int) -> int:
    """Sum of (first + k × step) // divisor for k from 0 to n_terms - 1, by Euclid's algorithm.

    >>> floor_sum(5, 4, 3, 2), sum((2 + 3 * k) // 4 for k in range(5))
    (8, 8)
    """
    total = 0
    while n_terms:
        total += (n_terms - 1) * n_terms // 2 * (step // divisor) + n_terms * (first // divisor)
        step, first = step % divisor, first % divisor
        n_terms, first = divmod(step * n_terms + first, divisor)
        divisor, step = step, divisor
    return total
