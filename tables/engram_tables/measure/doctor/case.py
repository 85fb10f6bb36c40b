"""One question: this machine, this table, this placement."""

from __future__ import annotations

from dataclasses import dataclass, replace

from engram_tables.measure.doctor.findings import Placement
from engram_tables.measure.doctor.subject import Subject
from engram_tables.measure.doctor.system import Mount, System
from engram_tables.measure.doctor.tries import Tries


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What every check is given."""

    system: System
    subject: Subject
    placement: Placement
    tries: Tries

    def of_each_place(self) -> tuple[Case, ...]:
        """The same for each filesystem that holds files of the table; as it is where that is one."""
        files = self.subject.files
        if len(files) < 2:
            return (self,)
        return tuple(replace(self, subject=replace(self.subject, files=(file,))) for file in files)

    @property
    def host_bytes(self) -> int | None:
        """Host memory that is still to be taken; None where no size was named."""
        return self.subject.host_bytes(self.system, self.placement)

    @property
    def mount(self) -> Mount | None:
        """Of the table's first file."""
        return None if self.subject.place is None else self.system.mount_of(self.subject.place)

    def is_for(self, *placements: Placement) -> bool:
        """Whether it is about one of these."""
        return self.placement in placements
