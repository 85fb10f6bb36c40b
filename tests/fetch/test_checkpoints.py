"""Released checkpoints are read where they lie, as if they were tables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from made_checkpoints import MAKERS, Made, make_deepseek
from small_tables import small_table

from engram_tables.errors import InvalidInput, NotATable
from engram_tables.fetch.engines.copying import MemoryEngine
from engram_tables.fetch.engines.ladder import ENGINES
from engram_tables.fetch.table import open_table
from engram_tables.storage.building.repack import plan_repack
from engram_tables.storage.building.writer import build_table
from engram_tables.storage.sources.opening import open_source
from engram_tables.storage.sources.source import closing
from engram_tables.storage.table.ranks import Rank

# Each record length compiles kernels of its own: in every form one engine reads, in some forms all of them.
READ_BY_ALL = {"deepseek", "deepseek-mlx", "gguf-q8_0"}


@pytest.mark.parametrize(
    ("form", "engines"),
    [
        *((form, ["direct"]) for form in MAKERS if form not in READ_BY_ALL),
        *(
            pytest.param(form, ENGINES, marks=() if form in READ_BY_ALL else pytest.mark.slow, id=f"{form}-all")
            for form in MAKERS
        ),
    ],
)
def test_every_form_gives_its_rows(form: str, engines: Sequence[str], tmp_path: Path) -> None:
    made = MAKERS[form](tmp_path / "checkpoint")
    rng = np.random.default_rng(0)
    with open_table(made.path) as table:
        assert table.vocabulary is None
        assert table.row_bytes == sum(n_bytes for _, n_bytes in made.parts)
        for layer_id, records in made.records.items():
            rows = rng.integers(0, len(records), 200)
            for engine in engines:
                assert np.array_equal(table.fetch_rows(layer_id, rows, engine=engine), records[rows]), engine
        if made.codec.startswith("opaque"):
            with pytest.raises(InvalidInput, match=made.codec):
                table.decode(table.fetch_rows(layer_id, rows))
        else:
            assert table.decode(table.fetch_rows(layer_id, rows)).shape == (200, made.row_width)


def test_what_is_neither_is_no_table(tmp_path: Path) -> None:
    with pytest.raises(NotATable, match=r"found no engram\.json") as caught:
        open_table(tmp_path)
    assert "as a released checkpoint" in caught.value.__notes__[0]
    with pytest.raises(NotATable, match="found nothing there") as caught:
        open_table(tmp_path / "nothing")
    assert not hasattr(caught.value, "__notes__")


def test_a_table_is_never_taken_for_a_checkpoint(tmp_path: Path) -> None:
    """Its shards are safetensors too, but a table without its manifest is a copy that was not finished."""
    path = small_table(tmp_path / "table")
    (path / "engram.json").unlink()
    with pytest.raises(NotATable):
        open_table(path)


def test_a_checkpoint_that_lacks_a_shard_is_refused(tmp_path: Path) -> None:
    made = make_deepseek(tmp_path / "checkpoint")
    made.files[0].unlink()
    with pytest.raises((NotATable, InvalidInput)):
        open_table(made.path)


def _rank_table(made: Made, path: Path, layout: str, rank: Rank) -> Path:
    with closing(open_source(made.path)) as source:
        build_table(plan_repack(source, layout=layout, rank=rank, shard_bytes=8192), path, threads=1)
    return path


@pytest.mark.parametrize("layout", ["packed", "page", "aligned-128", "split"])
@pytest.mark.parametrize("by", ["head", "rows", "layer"])
def test_the_rows_of_a_rank_and_no_others(layout: str, by: str, tmp_path: Path) -> None:
    made = make_deepseek(tmp_path / "checkpoint")
    rank = Rank(by=by, rank=1, n_ranks=2)
    with open_table(_rank_table(made, tmp_path / "table", layout, rank)) as table:
        for layer_id, records in made.records.items():
            here = np.concatenate([np.arange(0), *(np.arange(*ends) for ends in table.stored.owned(layer_id))])
            missing = np.setdiff1d(np.arange(len(records)), here)
            for engine in ENGINES:
                assert np.array_equal(table.fetch_rows(layer_id, here, engine=engine), records[here]), engine
                if missing.size:
                    wanted = np.append(here, missing[-1:])
                    out = np.full((wanted.size, table.row_bytes), 7, np.uint8)
                    with pytest.raises(InvalidInput, match=f"row {missing[-1]} at .* of layer {layer_id} that .* rank"):
                        table.fetch_rows(layer_id, wanted, out, engine)
                    assert (out == 7).all()


def test_a_rank_without_a_row(tmp_path: Path) -> None:
    made = make_deepseek(tmp_path / "checkpoint")
    rank = Rank(by="layer", rank=2, n_ranks=3)
    with open_table(_rank_table(made, tmp_path / "table", "page", rank)) as table:
        assert table.stored.files == []
        for engine in ENGINES:
            table.engine(engine)
            assert table.fetch_rows(1, [], engine=engine).shape == (0, table.row_bytes)
            with pytest.raises(InvalidInput, match=r"found row 0 at position 0, expected one .*\(none\)"):
                table.fetch_rows(1, [0], engine=engine)
        MemoryEngine(table.stored, table.places).close()
