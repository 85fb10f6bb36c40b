"""Hashing both layers of DeepSeek-V4.1: checked against the reference, then timed against two NumPy forms.

    python -m benchmarks.hashing [--tokens 1000000] [--repeats 7] [--record FILE]

Timed window: canonical ids in memory to row ids of 48 columns a token. `published` is the form of the released code:
shifted copies, one array per head, stacked. `reused` is the same arithmetic into buffers that stay, transposed to
token-major like ours. Ours also writes the keys. The ceiling is writing as many bytes, with as many threads. Ids are
those of the standard library's sources; every method is interleaved with the others. Exit code 6 when a row differs.
"""

from __future__ import annotations

import argparse
import json
import sys
import sysconfig
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from engram_tables import load_spec
from engram_tables.address import reference
from engram_tables.address.hashing import hash_tokens
from engram_tables.address.spec import Addresses, AddressSpec
from engram_tables.address.vocabulary import build_vocabulary
from engram_tables.corpus.reading.readers import find_documents
from engram_tables.corpus.tokens.token_stream import tokenize_documents
from engram_tables.measure.environment import command_line, describe
from engram_tables.measure.timing import Case, interleave
from engram_tables.threads import run_slices

I64 = npt.NDArray[np.int64]
CHECK_FOUND = 6
THREADS = 2


def published(spec: AddressSpec, ids: I64) -> I64:
    """Rows (tokens, layers, columns) as the released NumPy code computes them."""
    shifts = [np.pad(ids, (back, 0), constant_values=spec.fill_id)[: len(ids)] for back in range(spec.max_order)]
    layers = []
    for layer in spec.layers:
        columns, column = [], 0
        for order, moduli in zip(spec.orders, layer.moduli, strict=True):
            mix = shifts[0] * layer.multipliers[0]
            for back in range(1, order):
                mix = np.bitwise_xor(mix, shifts[back] * layer.multipliers[back])
            for modulus in moduli:
                columns.append((mix % modulus).astype(np.int64, copy=False) + layer.offsets[column])
                column += 1
        layers.append(np.stack(columns, axis=1))
    return np.stack(layers, axis=1)


class Reused:
    """The same arithmetic without fresh memory, in blocks that stay in the cache."""

    block = 16_384

    def __init__(self, spec: AddressSpec, n_tokens: int) -> None:
        self.spec = spec
        self.mix = np.empty(self.block, dtype=np.int64)
        self.product = np.empty(self.block, dtype=np.int64)
        self.columns = np.empty((spec.n_columns, self.block), dtype=np.int64)
        self.shifted = np.empty(n_tokens + spec.max_order - 1, dtype=np.int64)
        self.rows = np.empty((n_tokens, len(spec.layers), spec.n_columns), dtype=np.int64)

    def __call__(self, ids: I64) -> I64:
        lead = self.spec.max_order - 1
        self.shifted[:lead] = self.spec.fill_id
        self.shifted[lead:] = ids
        for start in range(0, len(ids), self.block):
            stop = min(start + self.block, len(ids))
            for layer_idx, layer in enumerate(self.spec.layers):
                self._block(start, stop, layer_idx, layer, lead)
        return self.rows

    def _block(self, start: int, stop: int, layer_idx: int, layer: Any, lead: int) -> None:
        n, back, column = stop - start, 0, 0
        mix, product = self.mix[:n], self.product[:n]
        np.multiply(self.shifted[lead + start : lead + stop], layer.multipliers[0], out=mix)
        for order, moduli in zip(self.spec.orders, layer.moduli, strict=True):
            while back < order - 1:
                back += 1
                seen = self.shifted[lead + start - back : lead + stop - back]
                np.bitwise_xor(mix, np.multiply(seen, layer.multipliers[back], out=product), out=mix)
            for modulus in moduli:
                local = np.remainder(mix, modulus, out=self.columns[column, :n])
                local += layer.offsets[column]
                column += 1
        self.rows[start:stop, layer_idx] = self.columns[:, :n].T


def corpus_ids(n_tokens: int) -> I64:
    """Canonical ids of the standard library's sources, repeated up to `n_tokens` if they are fewer."""
    vocabulary = build_vocabulary("deepseek-v4")
    corpus = find_documents([Path(sysconfig.get_path("stdlib")) / "asyncio"], glob="*.py", decode_errors="replace")
    stream = tokenize_documents(vocabulary.tokenizer(), corpus.documents())
    return np.resize(vocabulary.canonical(stream.ids).astype(np.int64), n_tokens)


def check(spec: AddressSpec, ids: I64, rows: dict[str, I64]) -> None:
    """End with exit code 6 unless every method's rows equal each other and, at the start, the reference's."""
    head = ids[:2000].tolist()
    for layer_idx, layer in enumerate(spec.layers):
        expected, _ = reference.address(spec, layer, head)
        _expect(f"layer {layer.layer_id}, reference", np.array(expected), rows["ours"][: len(head), layer_idx])
    for name, found in rows.items():
        _expect(name, found, rows["ours"])


def _expect(name: str, expected: I64, found: I64) -> None:
    if not np.array_equal(expected, found):
        print(f"{name}: rows differ from ours", file=sys.stderr)
        sys.exit(CHECK_FOUND)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--record", type=Path)
    options = parser.parse_args()
    spec = load_spec("deepseek-v4.1-flash")
    ids = corpus_ids(options.tokens)
    canonical_ids = ids.astype(np.uint32)  # as a vocabulary gives them; NumPy's forms take int64
    out = {n: hash_tokens(spec, canonical_ids, threads=n) for n in (1, THREADS)}
    reused = Reused(spec, len(ids))
    check(spec, ids, {"ours": out[1].rows, "two threads": out[THREADS].rows, "published": published(spec, ids),
                      "reused": reused(ids)})  # fmt: skip
    n_bytes = out[1].rows.nbytes + out[1].keys.nbytes
    ceiling = np.empty(n_bytes, dtype=np.uint8)

    def write_all(threads: int) -> None:
        run_slices(lambda start, stop: ceiling[start:stop].fill(1), n_bytes, threads=threads, grain=1)

    def ours(threads: int) -> Addresses:
        return hash_tokens(spec, canonical_ids, threads=threads, out=out[threads])

    cases = {
        "published": lambda _: published(spec, ids),
        "reused": lambda _: reused(ids),
        "ours 1 thread": lambda _: ours(1),
        "ours 2 threads": lambda _: ours(THREADS),
        "write 1 thread": lambda _: write_all(1),
        "write 2 threads": lambda _: write_all(THREADS),
    }
    samples = interleave(
        {name: Case(prepare=lambda: None, run=run) for name, run in cases.items()}, repeats=options.repeats
    )
    medians = {name: sample.median_ns for name, sample in samples.items()}
    print(f"{describe()['cpu_model']}; {len(ids):,} tokens, {spec.n_columns * len(spec.layers)} columns each")
    print(f"{'method':16} {'M tokens/s':>11} {'ns a column':>12} {'x published':>12} {'x reused':>9} {'of writes':>10}")
    for name, median in medians.items():
        write = medians["write 1 thread" if "1" in name else "write 2 threads"]
        columns = len(ids) * spec.n_columns * len(spec.layers)
        print(
            f"{name:16} {len(ids) / median * 1e3:11.2f} {median / columns:12.3f} "
            f"{medians['published'] / median:12.1f} {medians['reused'] / median:9.2f} {write / median:10.2f}"
        )
    record = {
        "schema": "engram.benchmark-hashing/1",
        "command": command_line(),
        "environment": describe(),
        "n_tokens": len(ids),
        "columns_per_token": spec.n_columns * len(spec.layers),
        "methods": {name: sample.summary() for name, sample in samples.items()},
        "ratio_to_published": medians["published"] / medians["ours 2 threads"],
        "ratio_to_reused": medians["reused"] / medians["ours 2 threads"],
        "share_of_write_ceiling": medians["write 2 threads"] / medians["ours 2 threads"],
    }
    if options.record is not None:
        options.record.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
