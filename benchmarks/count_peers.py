"""Ways to count n-grams in memory: the library's and those of other packages, each in its best form.

Owns what each method is given before the clock starts, what runs under it, and how its result is read for the check.
Knows no clock and no process. A package that is not installed raises ImportError in `prepare`.

Forms that the peers are given outside the timed window: `columns` are the shifted id columns t0, t1 ... of all whole
n-grams of an order; `packed` is one uint64 an n-gram, or a uint64 of the last tokens with a uint32 of the first where
64 bits do not hold it; `ranks` replace ids in packed words.
"""

from __future__ import annotations

import tempfile
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator
from itertools import islice, pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.count_input import Input, reference
from engram_tables.corpus.counts.counting import Workspace, count_ngrams

Array = npt.NDArray[Any]
WARM_UP_TOKENS = 1 << 16


class Method(ABC):
    """One way to count all orders: `prepare` and `forget` outside the clock, `run` under it."""

    ascending = False
    slow = False
    """Minutes at full size: counts fewer tokens, which its record says."""
    about = ""

    def __init__(self, given: Input, orders: list[int], threads: int) -> None:
        self.given, self.orders, self.threads = given, orders, threads

    @abstractmethod
    def prepare(self) -> None:
        """Load what runs and lay the input into its form."""

    @abstractmethod
    def run(self) -> None:
        """Count; the result stays in memory."""

    @abstractmethod
    def forget(self) -> None:
        """Drop the last result."""

    def close(self) -> None:  # noqa: B027 - most have nothing
        """Give back what the result does not need, before it is checked."""

    @abstractmethod
    def result(self, order: int) -> tuple[list[Array], Array]:
        """Ids of each place, oldest first, and counts."""


class Engram(Method):
    about = "count_ngrams with a workspace; sorted"
    ascending = True

    def prepare(self) -> None:
        self.workspace = Workspace()
        starts = self.given.document_starts
        starts = np.append(starts[starts < WARM_UP_TOKENS], min(WARM_UP_TOKENS, len(self.given.ids)))
        self._count(self.given.ids[: starts[-1]], starts, Workspace())

    def _count(self, ids: Array, starts: Array, workspace: Workspace) -> dict[int, Any]:
        return count_ngrams(
            ids,
            starts,
            orders=self.orders,
            canonical_size=self.given.canonical_size,
            threads=self.threads,
            workspace=workspace,
        )

    def run(self) -> None:
        self.counts = self._count(self.given.ids, self.given.document_starts, self.workspace)

    def forget(self) -> None:
        self.counts = {}

    def close(self) -> None:
        self.workspace = Workspace()

    def result(self, order: int) -> tuple[list[Array], Array]:
        return list(self.counts[order].columns), self.counts[order].counts


class EngramFresh(Engram):
    about = "count_ngrams without a workspace: fresh memory in every run; sorted"

    def run(self) -> None:
        self.counts = self._count(self.given.ids, self.given.document_starts, Workspace())


class NumPy(Method):
    about = "one order after the other: pack ranks, np.sort, runs; one thread; sorted"
    ascending = True

    def prepare(self) -> None:
        _ = self.given.ranks, self.given.occurrences, self.given.present  # computed on first use

    def run(self) -> None:
        for order in self.orders:
            self.found[order] = list(reference(self.given, order))

    def forget(self) -> None:
        self.found: dict[int, list[tuple[int, int, Array, Array]]] = {}

    def result(self, order: int) -> tuple[list[Array], Array]:
        pieces = self.found[order]
        bits = self.given.rank_bits
        rest = [[_rank(words, place, bits) for _, _, words, _ in pieces] for place in range(order - 2, -1, -1)]
        leading = [(words >> np.uint64((order - 1) * bits)) + np.uint64(low) for low, _, words, _ in pieces]
        columns = [self.given.present[np.concatenate(place)] for place in [leading, *rest]]
        return columns, np.concatenate([counts for *_, counts in pieces])


def _rank(words: Array, place: int, bits: int) -> Array:
    """The rank `place` places before the newest in packed words."""
    return words >> np.uint64(place * bits) & np.uint64((1 << bits) - 1)


class _Grouped(Method):
    """A package with tables and GROUP BY: one table an order, `keys` its columns."""

    packed = False

    def columns(self, order: int) -> dict[str, Array]:
        """The key columns of an order, in the form that the method is given."""
        chosen = self.given.whole(order)
        if not self.packed:
            return {f"t{place}": self.given.ids[place:][chosen[: len(chosen) - place]] for place in range(order)}
        in_word = min(order, 64 // self.given.rank_bits)
        columns = {"k": self.given.packed(order - in_word, order, chosen)}
        if in_word < order:
            columns["first"] = self.given.packed(0, order - in_word, chosen).astype(np.uint32)
        return columns

    def keys(self, order: int) -> list[str]:
        if not self.packed:
            return [f"t{place}" for place in range(order)]
        return ["k"] if order <= 64 // self.given.rank_bits else ["k", "first"]

    @abstractmethod
    def rows(self, order: int) -> dict[str, Array]:
        """The result's columns, `n` the counts."""

    def result(self, order: int) -> tuple[list[Array], Array]:
        rows = self.rows(order)
        if not self.packed:
            return [rows[f"t{place}"] for place in range(order)], rows["n"]
        bits = self.given.rank_bits
        in_word = min(order, 64 // bits)
        ranks = [_rank(rows["k"], place, bits) for place in range(in_word - 1, -1, -1)]
        if in_word < order:
            first = rows["first"].astype(np.uint64)
            ranks = [_rank(first, place, bits) for place in range(order - in_word - 1, -1, -1)] + ranks
        return [self.given.present[rank] for rank in ranks], rows["n"]


class DuckDB(_Grouped):
    about = "GROUP BY over shifted columns in its own memory, into tables of its own"

    def prepare(self) -> None:
        self.connect()
        for order in self.orders:
            self.take(f"of_{order}", self.columns(order))

    def connect(self) -> None:
        import duckdb

        self.connection = duckdb.connect()
        self.connection.execute(f"SET threads = {self.threads}")
        self.connection.execute("SET preserve_insertion_order = false")
        self.spill = tempfile.TemporaryDirectory(prefix="duckdb-")  # else it spills where the run was started
        self.connection.execute(f"SET temp_directory = '{self.spill.name}'")

    def take(self, name: str, columns: dict[str, Array]) -> None:
        """A table of its own from columns."""
        import pyarrow as pa

        self.connection.register("given", pa.table(columns))
        self.connection.execute(f"CREATE TABLE {name} AS SELECT * FROM given")
        self.connection.unregister("given")

    def run(self) -> None:
        for order in self.orders:
            self.group(order, f"of_{order}")

    def group(self, order: int, table: str) -> None:
        keys = ", ".join(self.keys(order))
        self.connection.execute(
            f"CREATE TEMP TABLE counts_{order} AS SELECT {keys}, count(*) AS n FROM {table} GROUP BY {keys}"
        )

    def forget(self) -> None:
        for order in self.orders:
            self.connection.execute(f"DROP TABLE IF EXISTS counts_{order}")

    def rows(self, order: int) -> dict[str, Array]:
        table = self.connection.sql(f"SELECT * FROM counts_{order}").to_arrow_table()
        return {name: table[name].to_numpy() for name in table.column_names}


class DuckDBPacked(DuckDB):
    about = "GROUP BY over packed words in its own memory, into tables of its own"
    packed = True


class DuckDBArrow(DuckDB):
    about = "GROUP BY over shifted columns in Arrow, into Arrow"

    def take(self, name: str, columns: dict[str, Array]) -> None:
        import pyarrow as pa

        self.connection.register(name, pa.table(columns))

    def run(self) -> None:
        self.found = {}
        for order in self.orders:
            keys = ", ".join(self.keys(order))
            query = f"SELECT {keys}, count(*) AS n FROM of_{order} GROUP BY {keys}"
            self.found[order] = self.connection.sql(query).to_arrow_table()

    def forget(self) -> None:
        self.found: dict[int, Any] = {}

    def rows(self, order: int) -> dict[str, Array]:
        return {name: self.found[order][name].to_numpy() for name in self.found[order].column_names}


class DuckDBFromIds(DuckDB):
    about = "ids and document numbers in its own memory; windows by lead() in SQL, the same GROUP BY"

    def prepare(self) -> None:
        self.connect()
        # lead() OVER () takes rows as they come, so that they must stay in order.
        self.connection.execute("SET preserve_insertion_order = true")
        lengths = np.diff(self.given.document_starts)
        document = np.repeat(np.arange(len(lengths), dtype=np.uint32), lengths)
        self.take("tokens", {"id": self.given.ids, "document": document})

    def run(self) -> None:
        for order in self.orders:
            shifted = [f"lead(id, {place}) OVER () AS t{place}" for place in range(1, order)]
            last = f"lead(document, {order - 1}) OVER () AS last" if order > 1 else "document AS last"
            windows = f"(SELECT id AS t0, document, {', '.join([*shifted, last])} FROM tokens)"
            self.group(order, f"{windows} WHERE document = last")


class DuckDBCascade(DuckDB):
    about = "one table of packed words; the longest order by GROUP BY, each shorter one summed from the longer's groups"
    packed = True

    def prepare(self) -> None:
        self.connect()
        given, order = self.given, max(self.orders)
        self.head = min(order, 64 // given.rank_bits)
        # Every position has a window: the spare rank stands past the end of its document, so that no order lacks the
        # shorter n-grams there. Three such windows a document stay in the longer orders' results until they are read.
        places = [given.ranks]
        for place in range(1, order):
            column = np.full(len(given.ids), len(given.present), dtype=np.uint32)
            whole = given.whole(place + 1)[: len(given.ids) - place]
            np.copyto(column[: len(whole)], given.ranks[place:], where=whole)
            places.append(column)
        word = np.zeros(len(given.ids), dtype=np.uint64)
        for column in places[: self.head]:
            word <<= np.uint64(given.rank_bits)
            word |= column
        self.take("tokens", {"k": word} | {f"t{place}": places[place] for place in range(self.head, order)})

    def run(self) -> None:
        table, counts = "tokens", "count(*)"
        longest = max(self.orders)
        for order in range(longest, min(self.orders) - 1, -1):
            rest = [f"t{place}" for place in range(self.head, order)]
            word = f"k >> {self.given.rank_bits}" if order < min(self.head, longest) else "k"
            places = ", ".join(str(place) for place in range(1, len(rest) + 2))
            self.connection.execute(
                f"CREATE TEMP TABLE counts_{order} AS SELECT {', '.join([f'{word} AS k', *rest])}, "
                f"{counts}::UBIGINT AS n FROM {table} GROUP BY {places}"
            )
            table, counts = f"counts_{order}", "sum(n)"

    def forget(self) -> None:
        for order in range(min(self.orders), max(self.orders) + 1):
            self.connection.execute(f"DROP TABLE IF EXISTS counts_{order}")

    def result(self, order: int) -> tuple[list[Array], Array]:
        rows, bits = self.rows(order), self.given.rank_bits
        in_word = min(order, self.head)
        ranks = [_rank(rows["k"], place, bits) for place in range(in_word - 1, -1, -1)]
        ranks += [rows[f"t{place}"] for place in range(in_word, order)]
        whole = ranks[-1] < len(self.given.present)
        return [self.given.present[rank[whole]] for rank in ranks], rows["n"][whole]


class Polars(_Grouped):
    about = "lazy group_by over shifted columns, streaming engine"

    def prepare(self) -> None:
        import polars

        self.polars = polars
        self.frames = {order: polars.DataFrame(self.columns(order)) for order in self.orders}

    def run(self) -> None:
        self.found = {order: self.group(order) for order in self.orders}

    def group(self, order: int) -> Any:
        count = self.polars.len().alias("n")
        return self.frames[order].lazy().group_by(self.keys(order)).agg(count).collect(engine="streaming")

    def forget(self) -> None:
        self.found: dict[int, Any] = {}

    def rows(self, order: int) -> dict[str, Array]:
        return {name: self.found[order][name].to_numpy() for name in self.found[order].columns}


class PolarsPacked(Polars):
    about = "lazy group_by over packed words, streaming engine"
    packed = True


class PyArrow(_Grouped):
    about = "Table.group_by over shifted columns"

    def prepare(self) -> None:
        import pyarrow as pa

        pa.set_cpu_count(self.threads)
        self.tables = {order: pa.table(self.columns(order)) for order in self.orders}

    def run(self) -> None:
        self.found = {
            order: table.group_by(self.keys(order)).aggregate([([], "count_all")])
            for order, table in self.tables.items()
        }

    def forget(self) -> None:
        self.found: dict[int, Any] = {}

    def rows(self, order: int) -> dict[str, Array]:
        table = self.found[order].rename_columns({"count_all": "n"})
        return {name: table[name].to_numpy() for name in table.column_names}


class PyArrowPacked(PyArrow):
    about = "Table.group_by over packed words"
    packed = True


class DataFusion(_Grouped):
    about = "GROUP BY over shifted columns in Arrow, into Arrow"

    def prepare(self) -> None:
        import datafusion
        import pyarrow as pa

        self.context = datafusion.SessionContext(datafusion.SessionConfig().with_target_partitions(self.threads))
        for order in self.orders:
            self.context.from_arrow(pa.table(self.columns(order)), name=f"of_{order}")

    def run(self) -> None:
        self.found = {}
        for order in self.orders:
            keys = ", ".join(self.keys(order))
            query = f"SELECT {keys}, count(*) AS n FROM of_{order} GROUP BY {keys}"
            self.found[order] = self.context.sql(query).to_arrow_table()

    def forget(self) -> None:
        self.found: dict[int, Any] = {}

    def rows(self, order: int) -> dict[str, Array]:
        return {name: self.found[order][name].to_numpy() for name in self.found[order].column_names}


class DataFusionPacked(DataFusion):
    about = "GROUP BY over packed words in Arrow, into Arrow"
    packed = True


class ClickHouse(_Grouped):
    about = "chDB (ClickHouse in process): GROUP BY over shifted columns in its Memory engine, into Memory tables"

    def prepare(self) -> None:
        import pyarrow as pa
        from chdb import session

        self.session = session.Session()
        self.session.query(f"SET max_threads = {self.threads}")
        self.session.query("CREATE DATABASE IF NOT EXISTS bench ENGINE = Atomic")
        for order in self.orders:
            given = pa.table(self.columns(order))  # found by its name in the query
            self.session.query(f"CREATE TABLE bench.of_{order} ENGINE = Memory AS SELECT * FROM Python(given)")
            del given

    def run(self) -> None:
        for order in self.orders:
            keys = ", ".join(self.keys(order))
            self.session.query(
                f"CREATE TABLE bench.counts_{order} ENGINE = Memory AS SELECT {keys}, count() AS n "
                f"FROM bench.of_{order} GROUP BY {keys} SETTINGS max_threads = {self.threads}"
            )

    def forget(self) -> None:
        for order in self.orders:
            self.session.query(f"DROP TABLE IF EXISTS bench.counts_{order} SYNC")

    def rows(self, order: int) -> dict[str, Array]:
        import pyarrow as pa

        found = self.session.query(f"SELECT * FROM bench.counts_{order}", "Arrow").bytes()
        table = pa.ipc.open_file(found).read_all()
        return {name: table[name].to_numpy() for name in table.column_names}


class ClickHousePacked(ClickHouse):
    about = "chDB (ClickHouse in process): GROUP BY over packed words in its Memory engine, into Memory tables"
    packed = True


class _ByDocument(Method):
    """A method that takes one document after the other, in plain Python."""

    slow = True

    def documents(self) -> Iterator[Array]:
        starts = self.given.document_starts
        return (self.given.ids[start:stop] for start, stop in pairwise(starts))

    def forget(self) -> None:
        self.found: dict[int, Any] = {}

    def result(self, order: int) -> tuple[list[Array], Array]:
        ngrams = np.array([list(map(int, ngram)) for ngram in self.found[order]], dtype=np.uint32).reshape(-1, order)
        return list(ngrams.T), np.array(list(self.found[order].values()), dtype=np.uint64)


class PlainPython(_ByDocument):
    about = "collections.Counter over zipped lists of ints, as written by hand; one thread"

    def prepare(self) -> None:
        self.lists = [document.tolist() for document in self.documents()]

    def run(self) -> None:
        self.found = {order: Counter() for order in self.orders}
        for order, counter in self.found.items():
            for document in self.lists:
                counter.update(zip(*(islice(document, place, None) for place in range(order)), strict=False))


class Rustling(_ByDocument):
    about = "rustling.ngram.Ngrams over lists of strings, all orders in one; one thread"

    def prepare(self) -> None:
        from rustling.ngram import Ngrams

        self.counter = Ngrams
        self.words = [[str(token) for token in document.tolist()] for document in self.documents()]

    def run(self) -> None:
        self.ngrams = self.counter(max(self.orders), min_n=min(self.orders))
        self.ngrams.count_seqs(self.words)

    def result(self, order: int) -> tuple[list[Array], Array]:
        self.found = {order: dict(self.ngrams.items(order=order))}
        return super().result(order)


class ScikitLearn(_ByDocument):
    about = "CountVectorizer over documents of ids as words, all orders in one; one thread"

    def prepare(self) -> None:
        from sklearn.feature_extraction.text import CountVectorizer

        self.vectorizer = CountVectorizer
        self.texts = [" ".join(map(str, document.tolist())) for document in self.documents()]

    def run(self) -> None:
        spans = (min(self.orders), max(self.orders))
        vectorizer = self.vectorizer(ngram_range=spans, analyzer="word", token_pattern=r"\S+", lowercase=False)
        self.times = np.asarray(vectorizer.fit_transform(self.texts).sum(axis=0)).ravel()
        self.columns = vectorizer.vocabulary_

    def result(self, order: int) -> tuple[list[Array], Array]:
        chosen = {tuple(ngram.split(" ")): place for ngram, place in self.columns.items()}
        self.found = {order: {ngram: self.times[place] for ngram, place in chosen.items() if len(ngram) == order}}
        return super().result(order)


METHODS: dict[str, type[Method]] = {
    "engram": Engram,
    "engram-fresh": EngramFresh,
    "numpy": NumPy,
    "duckdb": DuckDB,
    "duckdb-packed": DuckDBPacked,
    "duckdb-cascade": DuckDBCascade,
    "duckdb-arrow": DuckDBArrow,
    "duckdb-ids": DuckDBFromIds,
    "polars": Polars,
    "polars-packed": PolarsPacked,
    "pyarrow": PyArrow,
    "pyarrow-packed": PyArrowPacked,
    "datafusion": DataFusion,
    "datafusion-packed": DataFusionPacked,
    "clickhouse": ClickHouse,
    "clickhouse-packed": ClickHousePacked,
    "counter": PlainPython,
    "rustling": Rustling,
    "scikit-learn": ScikitLearn,
}
