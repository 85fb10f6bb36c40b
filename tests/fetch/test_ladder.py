"""Which engines read a table here, by reading it."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_table import apart, make_files, make_table

from engram_tables.errors import BackendUnavailable, InvalidInput
from engram_tables.fetch.engines.copying import GatherEngine
from engram_tables.fetch.engines.engine import Engine
from engram_tables.fetch.engines.ladder import ENGINES, first_usable, probe
from engram_tables.fetch.engines.mapping import MappingEngine
from engram_tables.fetch.table import Table


def test_every_engine_reads_or_says_why_not(tmp_path: Path) -> None:
    with make_table(tmp_path, n_rows=(500, 300), rows_per_shard=100) as table:
        rungs = probe(table.stored, table.engine)
        assert [rung.engine for rung in rungs] == list(ENGINES)
        for rung in rungs:
            assert rung.is_usable == (rung.reason is None)
            assert rung.is_usable or rung.engine in str(rung.reason)
        usable = {rung.engine for rung in rungs if rung.is_usable}
        assert {"gather", "pread", "mapping"} <= usable


@pytest.mark.parametrize("wanted", [["mapping", "gather"], ["pread"], []])
def test_only_the_engines_that_are_asked_for(wanted: list[str], tmp_path: Path) -> None:
    with make_table(tmp_path) as table:
        assert [rung.engine for rung in probe(table.stored, table.engine, wanted)] == wanted


def test_parts_in_files_of_their_own_and_rows_of_some_layers(tmp_path: Path) -> None:
    cuts = [[[(0, 50), (50, 50)], [(0, 100)]], [[], []]]
    with make_files(tmp_path, n_rows=[100, 100], parts=apart(256, 8), cuts=cuts) as table:
        assert all(rung.is_usable for rung in probe(table.stored, table.engine, ["gather", "pread", "mapping"]))


def test_one_record_of_each_file_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, list[int]]] = []
    real = MappingEngine._read

    def watching(self: Any, batch: Any, *arguments: Any) -> None:
        asked.append((batch.first_layer, batch.rows.tolist()))
        real(self, batch, *arguments)

    monkeypatch.setattr(MappingEngine, "_read", watching)
    with make_table(tmp_path, n_rows=(250, 100), rows_per_shard=100) as table:
        probe(table.stored, table.engine, ["mapping"])
    assert asked == [(0, [0, 100, 200]), (1, [0])]


def test_the_reason_of_a_refusal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain_open = os.open

    def refuse(path: Any, flags: int, *more: Any, **named: Any) -> int:
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), path)
        return plain_open(path, flags, *more, **named)

    with make_table(tmp_path) as table:
        monkeypatch.setattr(os, "open", refuse)
        direct, pread = first_usable(table.stored, table.engine, ["direct", "pread", "mapping"])
        assert (direct.engine, direct.is_usable) == ("direct", False)
        assert "refuses O_DIRECT" in str(direct.reason)
        assert (pread.engine, pread.is_usable, pread.reason) == ("pread", True, None)
        assert not any(rung.is_usable for rung in first_usable(table.stored, table.engine, ["direct"]))


class FlipsABit(GatherEngine):
    """One bit of one record is wrong."""

    def _read(self, batch: Any, out: Any, threads: Any, items: Any) -> None:
        super()._read(batch, out, threads, items)
        out[batch.rows == 200, 263] ^= 1


class WritesNothing(GatherEngine):
    """Leaves the caller's buffer as it was."""

    def _read(self, batch: Any, out: Any, threads: Any, items: Any) -> None:
        pass


@pytest.mark.parametrize(("kind", "found"), [(FlipsABit, "row 200 (1 of 3"), (WritesNothing, "row 0 (3 of 3")])
def test_an_engine_that_gives_other_bytes_is_refused(kind: type[GatherEngine], found: str, tmp_path: Path) -> None:
    with make_table(tmp_path, n_rows=(300,), rows_per_shard=100) as table:
        engine = kind(table.stored, table.places)
        (rung,) = probe(table.stored, lambda _: engine, ["gather"])
        assert not rung.is_usable
        assert f"gave other bytes than a plain reading of {found}" in str(rung.reason)
        engine.close()


def test_an_error_of_the_system_is_a_reason_and_a_mistake_is_none(tmp_path: Path) -> None:
    def failing(error: Exception) -> Any:
        def engine_of(_: str) -> Engine:
            raise error

        return engine_of

    with make_table(tmp_path) as table:
        for error in (OSError(errno.EMFILE, "Too many open files"), BackendUnavailable("engine direct: not here")):
            (rung,) = probe(table.stored, failing(error), ["direct"])
            assert rung == ("direct", False, str(error))
        with pytest.raises(ZeroDivisionError):
            probe(table.stored, failing(ZeroDivisionError()), ["direct"])


def test_a_closed_table_is_not_probed(tmp_path: Path) -> None:
    table: Table = make_table(tmp_path)
    engine_of, stored = table.engine, table.stored
    rows = np.arange(2)
    table.fetch_rows(1, rows)
    table.close()
    with pytest.raises((InvalidInput, OSError)):
        probe(stored, engine_of)
