"""A figure and where it comes from, and the figures that hold until better ones are known.

It measures nothing and decides nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from engram_tables.errors import InvalidInput

LEAST_FIGURE, MOST_FIGURE = 1e-9, 1e18
"""What lies outside is a slip of whoever gave it, and its products would leave the range of numbers."""


class Origin(StrEnum):
    """Who says so."""

    MEASURED = "measured"
    """By this toolkit, in the record that `where` names."""
    GIVEN = "given"
    """By whoever asked."""
    PUBLISHED = "published"
    """By somebody else, for another machine."""
    ASSUMED = "assumed"
    """By nobody for this machine; the first thing to replace."""
    COMPUTED = "computed"
    """From other figures."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A number whose unit stands in the name of what holds it.

    Attributes
    ----------
    where
        The file, option or publication, for people.
    """

    value: float
    origin: Origin
    where: str

    def to_json(self) -> dict[str, Any]:
        """For a record; whole numbers stay whole."""
        value = int(self.value) if float(self.value).is_integer() else self.value
        return {"value": value, "origin": str(self.origin), "where": self.where}


def check_figure(value: float, where: str) -> None:
    """Raise `InvalidInput` unless a plan can reckon with a number: above 0, and neither absurd nor infinite."""
    if not value > 0:
        raise InvalidInput(f"{where}: found {value}, expected more than 0; correct it")
    if not LEAST_FIGURE <= value <= MOST_FIGURE:
        # Of a whole number of hundreds of digits only the beginning.
        raise InvalidInput(
            f"{where}: found {str(value)[:40]}, expected {LEAST_FIGURE:g} to {MOST_FIGURE:g}; is it in another unit?"
        )


def given(value: float, option: str) -> Figure:
    """A figure by hand."""
    return Figure(value=value, origin=Origin.GIVEN, where=option)


def _assumed(value: float, why: str) -> Figure:
    return Figure(value=value, origin=Origin.ASSUMED, where=why)


def _published(value: float, where: str) -> Figure:
    return Figure(value=value, origin=Origin.PUBLISHED, where=where)


_VM = "a virtual machine with 2 cores of a Xeon and huge pages; measure yours"

USUAL: dict[str, Figure] = {
    "copy_bytes_per_s": _assumed(17.4e9, f"memcpy by one thread of {_VM}"),
    "copy_scaling": _assumed(1.0, "threads that do not help each other"),
    "random_lines_per_s": _assumed(63e6, f"random cache lines by one core of {_VM}"),
    "next_line_ns": _assumed(6.0, f"a cache line right behind another one on {_VM}"),
    "dependent_load_ns": _assumed(299.0, f"a pointer chase on {_VM}"),
    "call_us": _assumed(3.0, "a fetch of cached records, less their rows, on such a machine"),
    "small_page_slowdown": _assumed(2.4, "63 against 26 million random lines a second with huge and 4 KiB pages"),
    "cxl_slowdown": _assumed(2.5, "latency of memory behind CXL over that of local memory"),
    "bus_bytes_per_s": _published(20e9, "zero-copy gather of 353-byte rows over PCIe 4: 20 to 22 GB/s"),
    "gpu_call_us": _published(3.70, "GB300, zero-copy lookup of one token in a table of 94 GiB"),
    "gpu_bytes_per_s": _assumed(1e12, "random rows from a GPU's own memory, a fraction of its bandwidth"),
}
"""Figures of `Machine` by name that no record and nobody gave."""

USUAL_DISK_LATENCY_US = _assumed(100.0, "one read of an idle flash device")
