"""Hashing by every family of published tables: checked, then timed against its NumPy form and, for Qwen, EngramDB.

    python -m benchmarks.families [--tokens 1000000] [--repeats 5] [--record FILE]

Timed window: token ids in memory to row ids, and for ours the keys besides. The NumPy forms follow the released code
of each family, shift by shift and column by column; ours runs on one thread and on two. EngramDB's
`rowids_for_seq` (engramdb-python 0.3.0) takes and gives Python lists, which is its interface; its rows are compared on
all tokens, and it is timed on every repeat over a part of them, whose length the record states. The ceiling is writing
as many bytes as ours, with two threads. Ids are those of the standard library's sources, each file closed by the
model's end of sequence. Exit code 6 when a row differs.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import sysconfig
from collections.abc import Callable
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from engram_tables import load_spec
from engram_tables.address import reference
from engram_tables.address.hashing import hash_tokens
from engram_tables.address.spec import AddressSpec
from engram_tables.address.vocabulary import Vocabulary, build_vocabulary
from engram_tables.corpus.reading.readers import find_documents
from engram_tables.corpus.tokens.token_stream import tokenize_documents
from engram_tables.measure.environment import command_line, describe
from engram_tables.measure.timing import Case, interleave
from engram_tables.threads import run_slices

I64 = npt.NDArray[np.int64]
CHECK_FOUND = 6
THREADS = 2
PEER_TOKENS = 50_000
N_REFERENCE_TOKENS = 1000


def shifted(ids: I64, back: int, fill: int, boundary: int | None, *, visible: bool) -> I64:
    """Ids `back` tokens before, `fill` where the sequence or its segment had not begun."""
    positions = np.arange(len(ids))
    seen = np.concatenate([np.full(min(back, len(ids)), fill), ids[: max(0, len(ids) - back)]])
    if boundary is None or back == 0:
        return seen
    ends = np.maximum.accumulate(np.where(ids == boundary, positions, -1))
    last_end = np.concatenate([[-1], ends[:-1]])
    in_segment = positions - back >= (last_end if visible else last_end + 1)
    return np.where(in_segment, seen, fill)


def xor_multiply(spec: AddressSpec, ids: I64) -> I64:
    """DeepSeek's and Qwen's form: running exclusive-or of products, one remainder a column."""
    boundary = spec.history.boundary_ids[0] if spec.history.boundary_ids else None
    shifts = [shifted(ids, back, spec.fill_id, boundary, visible=True) for back in range(spec.max_order)]
    layers = []
    for layer in spec.layers:
        columns: list[I64] = []
        for order, moduli in zip(spec.orders, layer.moduli, strict=True):
            mix = shifts[0] * layer.multipliers[0]
            for back in range(1, order):
                mix = np.bitwise_xor(mix, shifts[back] * layer.multipliers[back])
            columns += [mix % modulus + layer.offsets[len(columns) + head] for head, modulus in enumerate(moduli)]
        layers.append(np.stack(columns, axis=1))
    return np.stack(layers, axis=1)


def engram_peft(spec: AddressSpec, ids: I64) -> I64:
    """The package's form: windows of the padded run, reduced along the window, all heads of an order broadcast."""
    padded = np.concatenate([np.full(spec.max_order - 1, spec.fill_id), ids])
    layers = []
    for layer in spec.layers:
        parts = []
        for order, moduli in zip(spec.orders, layer.moduli, strict=True):
            windows = np.lib.stride_tricks.sliding_window_view(padded, order)[: len(ids)]
            mix = np.bitwise_xor.reduce(windows * np.array(layer.multipliers[:order]), axis=-1)
            parts.append(np.mod(mix[:, None], np.array(moduli)))
        layers.append(np.concatenate(parts, axis=-1) + np.array(layer.offsets))
    return np.stack(layers, axis=1)


def longcat(spec: AddressSpec, ids: I64) -> I64:
    """LongCat's form: shifted ids times powers of the vocabulary's size modulo each table, summed, one remainder."""
    shifts = [
        shifted(ids, back, spec.fill_id, spec.history.boundary_ids[0], visible=False) for back in range(spec.max_order)
    ]
    layer = spec.layers[0]
    columns: list[I64] = []
    for order, moduli in zip(spec.orders, layer.moduli, strict=True):
        for modulus in moduli:
            total = shifts[0].copy()
            for back in range(1, order):
                total += shifts[back] * pow(layer.multipliers[0], back, modulus)
            columns.append(total % modulus + layer.offsets[len(columns)])
    return np.stack(columns, axis=1)[:, None]


def nanochat(spec: AddressSpec, ids: I64) -> I64:
    """nanochat's form: one salted sum a slot."""
    shifts = [shifted(ids, back, spec.fill_id, None, visible=False) for back in range(spec.max_order)]
    layer, first, columns = spec.layers[0], 0, []
    for (order, _), modulus in zip(spec.columns, chain.from_iterable(layer.moduli), strict=True):
        total = shifts[0] * layer.multipliers[first]
        for back in range(1, order):
            total += shifts[back] * layer.multipliers[first + back]
        columns.append(total % modulus)
        first += order
    return np.stack(columns, axis=1)[:, None]


def gemma(spec: AddressSpec, ids: I64) -> I64:
    """Gemma's form: the id itself, or 0 past the table."""
    return np.where((ids >= 0) & (ids < spec.n_rows), ids, 0)[:, None, None]


FORMS: dict[str, Callable[[AddressSpec, I64], I64]] = {
    "deepseek-v4.1-flash": xor_multiply,
    "qwen3.8-flash-next": xor_multiply,
    "longcat-flash-lite": longcat,
    "longcat-2.0": longcat,
    "nanochat-300m": nanochat,
    "engram-peft": engram_peft,
    "gemma-3n-e2b": gemma,
}


class Corpus:
    """The standard library's sources in DeepSeek's tokens; other models' ids would be others, and as many."""

    def __init__(self, n_tokens: int) -> None:
        self.vocabulary: Vocabulary = build_vocabulary("deepseek-v4")
        found = find_documents([Path(sysconfig.get_path("stdlib")) / "asyncio"], glob="*.py", decode_errors="replace")
        self._stream = tokenize_documents(self.vocabulary.tokenizer(), found.documents())
        self._n_tokens = n_tokens

    def ids(self, spec: AddressSpec) -> I64:
        """int64 (tokens,), documents closed by the spec's boundary, repeated up to the number asked for."""
        tokens = self._stream.ids.astype(np.int64)
        if spec.folded:
            return np.resize(self.vocabulary.canonical(tokens).astype(np.int64), self._n_tokens)
        tokens %= spec.canonical_size
        ends = self._stream.document_starts[1:]
        closed = np.insert(tokens, ends, spec.history.boundary_ids[0]) if spec.history.boundary_ids else tokens
        return np.resize(closed, self._n_tokens)


def expect(name: str, expected: I64, found: I64) -> None:
    """End with exit code 6 unless two sets of rows are equal."""
    if not np.array_equal(expected, found):
        print(f"{name}: rows differ from ours", file=sys.stderr)
        sys.exit(CHECK_FOUND)


def check(name: str, spec: AddressSpec, ids: I64, rows: I64) -> None:
    """Ours against the plain-Python reference at the start, and against the NumPy form everywhere."""
    head = ids[:N_REFERENCE_TOKENS].tolist()
    for layer_idx, layer in enumerate(spec.layers):
        expected, _ = reference.address(spec, layer, head)
        expect(f"{name}, reference", np.array(expected), rows[: len(head), layer_idx])
    expect(f"{name}, NumPy form", FORMS[name](spec, ids), rows)


def engramdb() -> Callable[[list[int]], list[list[int]]] | None:
    """EngramDB's hash, if the package is there."""
    try:
        module = importlib.import_module("engramdb")
    except ImportError:
        return None
    hash_sequence: Callable[[list[int]], list[list[int]]] = module.rowids_for_seq
    return hash_sequence


def check_engramdb(hash_sequence: Callable[[list[int]], list[list[int]]], ids: I64, rows: I64) -> None:
    """All tokens, in parts that begin with the two tokens before them."""
    for start in range(0, len(ids), PEER_TOKENS):
        before = min(start, 2)
        found = np.array(hash_sequence(ids[start - before : start + PEER_TOKENS].tolist()))[before:]
        expect("EngramDB", found, rows[start : start + PEER_TOKENS, 0])


def measure(name: str, corpus: Corpus, repeats: int) -> dict[str, Any]:
    """One family: every method interleaved, and the ratios between their medians per token."""
    vocabulary = corpus.vocabulary if name == "engram-peft" else None
    spec = load_spec(name, vocabulary=vocabulary)
    ids = corpus.ids(spec)
    out = {threads: hash_tokens(spec, ids, threads=threads) for threads in (1, THREADS)}
    check(name, spec, ids, out[1].rows)
    expect(f"{name}, two threads", out[THREADS].rows, out[1].rows)
    n_bytes = out[1].rows.nbytes + out[1].keys.nbytes
    ceiling = np.empty(n_bytes, dtype=np.uint8)
    cases: dict[str, tuple[int, Callable[[Any], object]]] = {
        "numpy": (len(ids), lambda _: FORMS[name](spec, ids)),
        "ours 1 thread": (len(ids), lambda _: hash_tokens(spec, ids, threads=1, out=out[1])),
        "ours 2 threads": (len(ids), lambda _: hash_tokens(spec, ids, threads=THREADS, out=out[THREADS])),
        "write 2 threads": (
            len(ids),
            lambda _: run_slices(partial(_write, ceiling), n_bytes, threads=THREADS, grain=1),
        ),
    }
    hash_sequence = engramdb() if name == "qwen3.8-flash-next" else None
    if hash_sequence is not None:
        check_engramdb(hash_sequence, ids, out[1].rows)
        part = ids[:PEER_TOKENS].tolist()
        cases["engramdb"] = (len(part), lambda _: hash_sequence(part))
    samples = interleave(
        {case: Case(prepare=lambda: None, run=run) for case, (_, run) in cases.items()}, repeats=repeats
    )
    ns_a_token = {case: samples[case].median_ns / n_tokens for case, (n_tokens, _) in cases.items()}
    ours = ns_a_token["ours 2 threads"]
    return {
        "preset": name,
        "family": str(spec.mix.family),
        "n_tokens": len(ids),
        "columns_per_token": spec.n_columns * len(spec.layers),
        "methods": {case: samples[case].summary() | {"n_tokens": n} for case, (n, _) in cases.items()},
        "tokens_per_s": {case: 1e9 / ns for case, ns in ns_a_token.items()},
        "ratio_to_numpy": ns_a_token["numpy"] / ours,
        "ratio_to_engramdb": ns_a_token["engramdb"] / ours if "engramdb" in ns_a_token else None,
        "ratio_to_engramdb_1_thread": ns_a_token["engramdb"] / ns_a_token["ours 1 thread"]
        if "engramdb" in ns_a_token
        else None,
        "share_of_write_ceiling": ns_a_token["write 2 threads"] / ours,
    }


def _write(ceiling: npt.NDArray[np.uint8], start: int, stop: int) -> None:
    ceiling[start:stop].fill(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--record", type=Path)
    options = parser.parse_args()
    corpus = Corpus(options.tokens)
    print(f"{describe()['cpu_model']}; {options.tokens:,} tokens; every row checked before it is timed")
    print(f"{'preset':20} {'columns':>7} {'numpy':>8} {'1 thread':>9} {'2 threads':>9} {'x numpy':>8} {'of writes':>9}")
    families = []
    for name in FORMS:
        found = measure(name, corpus, options.repeats)
        families.append(found)
        rate = {case: per_s / 1e6 for case, per_s in found["tokens_per_s"].items()}
        print(
            f"{name:20} {found['columns_per_token']:7} {rate['numpy']:8.2f} {rate['ours 1 thread']:9.2f} "
            f"{rate['ours 2 threads']:9.2f} {found['ratio_to_numpy']:8.1f} {found['share_of_write_ceiling']:9.2f}"
        )
        if found["ratio_to_engramdb"] is not None:
            print(
                f"{'  EngramDB 0.3.0':20} {rate['engramdb']:16.3f}: ours is {found['ratio_to_engramdb_1_thread']:.0f} "
                f"times as fast on one thread, {found['ratio_to_engramdb']:.0f} on two"
            )
    print("rates in million tokens a second")
    if options.record is not None:
        record = {
            "schema": "engram.benchmark-families/1",
            "command": command_line(),
            "environment": describe(),
            "families": families,
        }
        options.record.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
