"""What counted n-grams do to a table, by dicts and loops alone."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import NamedTuple

from engram_tables.address import reference
from engram_tables.address.spec import AddressSpec
from engram_tables.corpus.counts.counts_store import Counts

Ids = tuple[int, ...]


class Plain(NamedTuple):
    """One order of one layer.

    Attributes
    ----------
    ngrams
        Occurrences of every n-gram.
    keys, rows
        Of every n-gram: its key, and its row under each head, global within the layer.
    """

    ngrams: dict[Ids, int]
    keys: dict[Ids, int]
    rows: dict[Ids, tuple[int, ...]]

    @property
    def by_key(self) -> Counter[int]:
        """Occurrences of every key."""
        found: Counter[int] = Counter()
        for ids, count in self.ngrams.items():
            found[self.keys[ids]] += count
        return found

    def owners(self, head: int) -> dict[int, dict[int, int]]:
        """By row: occurrences of the keys that own it."""
        found: dict[int, dict[int, int]] = defaultdict(dict)
        occurrences = self.by_key
        for ids, key in self.keys.items():
            found[self.rows[ids][head]][key] = occurrences[key]
        return found

    def pairs(self, *heads: int) -> int:
        """Pairs of keys that share their row under all of some heads."""
        by_key = {key: self.rows[ids] for ids, key in self.keys.items()}
        groups = Counter(tuple(rows[head] for head in heads) for rows in by_key.values())
        return sum(n * (n - 1) // 2 for n in groups.values())


def plain(spec: AddressSpec, counts: Counts, layer_id: int, order: int) -> Plain:
    """By the reference hash, n-gram by n-gram."""
    ngrams = dict(_ngrams(counts, order))
    columns = [column for column, (o, _) in enumerate(spec.columns) if o == order]
    keys, rows = {}, {}
    for ids in ngrams:
        # A lagged order ends before the newest token; what follows the n-gram does not enter.
        all_rows, all_keys = reference.address(spec, spec.layer(layer_id), [*ids, *[2] * spec.lag(order)])
        keys[ids] = all_keys[-1][spec.orders.index(order)]
        rows[ids] = tuple(all_rows[-1][column] for column in columns)
    return Plain(ngrams, keys, rows)


def _ngrams(counts: Counts, order: int) -> Iterator[tuple[Ids, int]]:
    found = counts.load(order).whole()
    for ids, count in zip(found.ngrams.tolist(), found.counts.tolist(), strict=True):
        yield tuple(ids), count
