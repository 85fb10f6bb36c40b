"""What a check answers, and the placements that checks are about. It knows no machine."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum

from engram_tables.units import format_bytes


class Placement(StrEnum):
    """Where the rows are while a model runs."""

    GPU = "gpu"
    PINNED = "pinned"
    SHM = "shm"
    DRAM = "dram"
    NVME = "nvme"
    CXL = "cxl"


class Severity(StrEnum):
    """What a finding means for a placement."""

    WILL_FAIL = "will-fail"
    WILL_BE_SLOW = "will-be-slow"
    FINE = "fine"
    COULD_NOT_LOOK = "could-not-look"
    NOT_APPLICABLE = "not-applicable"


_GRAVITY = (
    Severity.WILL_FAIL, Severity.WILL_BE_SLOW, Severity.COULD_NOT_LOOK, Severity.FINE, Severity.NOT_APPLICABLE,
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """The answer of one check.

    Attributes
    ----------
    check
        Its name.
    severity
        For the placement asked about.
    found
        What is there, in words.
    limit
        What it has to be; None where nothing was held against anything.
    remedy
        What would change it; None where nothing has to.
    command
        A command that does so, for the user to judge and run.
    found_value, limit_value, unit
        The same as numbers where both are numbers: "B", "files", "mappings", "CPUs", "%", "KiB", "requests".
    """

    check: str
    severity: Severity
    found: str
    limit: str | None = None
    remedy: str | None = None
    command: str | None = None
    found_value: float | None = None
    limit_value: float | None = None
    unit: str | None = None


def not_applicable(check: str, found: str, why: str) -> Finding:
    """What is there, and why it does not matter."""
    return Finding(check=check, severity=Severity.NOT_APPLICABLE, found=found, limit=why)


def could_not_look(check: str, why: str, remedy: str | None = None) -> Finding:
    """A check that has no answer here, with the reason."""
    return Finding(check=check, severity=Severity.COULD_NOT_LOOK, found=why, remedy=remedy)


def at_least_bytes(
    check: str, found_bytes: int, needed_bytes: int | None, what: str, *, remedy: str, command: str | None = None,
    otherwise: Severity = Severity.WILL_FAIL,
) -> Finding:  # fmt: skip
    """Whether there are as many bytes as are needed; `needed_bytes` None: nobody said how many."""
    found = f"{format_bytes(found_bytes)} {what}"
    if needed_bytes is None:
        return not_applicable(check, found, "no size to hold it against; name a table, a preset or --table-bytes")
    is_enough = found_bytes >= needed_bytes
    return Finding(
        check=check,
        severity=Severity.FINE if is_enough else otherwise,
        found=found,
        limit=f"at least {format_bytes(needed_bytes)}",
        remedy=None if is_enough else remedy,
        command=None if is_enough else command,
        found_value=found_bytes,
        limit_value=needed_bytes,
        unit="B",
    )


def gravest(findings: Iterable[tuple[str, Finding]]) -> Finding:
    """One finding of several places' by their names: the gravest, with what was found in each where they differ.

    The first of equally grave ones; one or more have to be given.
    """
    named = list(findings)
    chosen = min((finding for _, finding in named), key=lambda finding: _GRAVITY.index(finding.severity))
    if len({finding.found for _, finding in named}) == 1:
        return chosen
    return replace(chosen, found="; ".join(f"{place}: {finding.found}" for place, finding in named))


def worst(findings: Iterable[Finding]) -> Severity:
    """The gravest severity among findings; `FINE` where nothing is wrong, or nothing could be told."""
    present = {finding.severity for finding in findings}
    return next((s for s in (Severity.WILL_FAIL, Severity.WILL_BE_SLOW) if s in present), Severity.FINE)
