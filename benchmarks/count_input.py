"""What the counting benchmarks count, and the independent count that every method is held against.

Owns the prepared input (a directory of flat arrays, read by every process of a run) and the reference by NumPy. Knows
no method and no clock.
"""

from __future__ import annotations

import argparse
import json
import platform
import sysconfig
import time
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

U32 = npt.NDArray[np.uint32]
U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]

CHECK_POSITIONS = 1 << 25
"""Positions that the check sorts at a time: 256 MiB of words, at any size of the input."""
COPIED_TOKENS = 1 << 26


class Input:
    """Canonical ids in memory, where their documents start, and the ranks of the ids that occur.

    Ranks keep the order of the ids and need fewer bits.
    """

    def __init__(self, ids: U32, document_starts: I64, canonical_size: int) -> None:
        self.ids = ids
        self.document_starts = document_starts
        self.canonical_size = canonical_size

    @cached_property
    def occurrences(self) -> I64:
        found = np.zeros(self.canonical_size, dtype=np.int64)
        for start in range(0, len(self.ids), COPIED_TOKENS):  # NumPy widens what it counts
            found += np.bincount(self.ids[start : start + COPIED_TOKENS], minlength=self.canonical_size)
        return found

    @cached_property
    def present(self) -> U32:
        """The ids that occur, ascending."""
        return np.flatnonzero(self.occurrences).astype(np.uint32)

    @property
    def rank_bits(self) -> int:
        """Bits of a rank, with one value to spare that no token has."""
        return len(self.present).bit_length()

    @cached_property
    def rank_of(self) -> U32:
        """uint32 (canonical_size,): an id's rank; the spare rank where the id does not occur."""
        ranks = np.full(self.canonical_size, len(self.present), dtype=np.uint32)
        ranks[self.present] = np.arange(len(self.present), dtype=np.uint32)
        return ranks

    @cached_property
    def ranks(self) -> U32:
        return self.rank_of[self.ids]

    def whole(self, order: int) -> npt.NDArray[np.bool_]:
        """bool (n_tokens,): whether an n-gram of `order` that starts here ends in the same document."""
        whole = np.ones(len(self.ids), dtype=bool)
        for back in range(1, order):
            ends = self.document_starts[1:] - back
            whole[ends[ends >= self.document_starts[:-1]]] = False
        return whole

    def packed(self, first: int, stop: int, chosen: npt.NDArray[Any]) -> U64:
        """uint64 words of the ranks `first` to `stop` places on from the chosen positions, the oldest in the top."""
        words = np.zeros(len(chosen) if chosen.dtype != bool else int(chosen.sum()), dtype=np.uint64)
        for place in range(first, stop):
            words <<= np.uint64(self.rank_bits)
            if chosen.dtype == bool:
                # The last positions start no whole n-gram, so that the shorter mask leaves none out.
                words |= self.ranks[place:][chosen[: len(self.ids) - place]]
            else:
                words |= self.ranks[chosen + place]
        return words


def blocks(given: Input, order: int, max_positions: int | None = None) -> Iterator[tuple[int, int]]:
    """Ranges of leading ranks whose n-grams of `order` fit one word, of at most `max_positions` where that can be."""
    free_bits = min(64 - (order - 1) * given.rank_bits, given.rank_bits)
    per_rank = given.occurrences[given.present]
    ends = np.cumsum(per_rank)
    low = 0
    while low < len(per_rank):
        high = min(low + (1 << free_bits), len(per_rank))
        if max_positions is not None:
            before = ends[low] - per_rank[low]
            high = min(high, max(low + 1, int(np.searchsorted(ends, before + max_positions, side="right"))))
        yield low, high
        low = high


def reference(given: Input, order: int, max_positions: int | None = None) -> Iterator[tuple[int, int, U64, I64]]:
    """Pack, `np.sort`, find the runs: (low, high, words, counts) of each block of leading ranks, all ascending.

    The words hold ranks, the first one less `low`.
    """
    whole = given.whole(order)
    for low, high in blocks(given, order, max_positions):
        everything = low == 0 and high == len(given.present)
        chosen = whole if everything else np.flatnonzero(whole & (given.ranks >= low) & (given.ranks < high))
        words = given.packed(0, order, chosen)
        words -= np.uint64((low << (order - 1) * given.rank_bits) % 2**64)
        words.sort()
        begins = np.ones(len(words), dtype=bool)
        np.not_equal(words[1:], words[:-1], out=begins[1:])
        first = np.flatnonzero(begins)
        yield low, high, words[first], np.diff(np.append(first, len(words)))


def difference(
    given: Input, columns: Sequence[npt.NDArray[Any]], counts: npt.NDArray[Any], *, ascending: bool
) -> str | None:
    """Where a count differs from the one that NumPy makes by another route; None where all of it is equal.

    `columns` are canonical ids, oldest first, one array a place. `ascending`: they must come in ascending order.
    """
    order = len(columns)
    if len(counts) and max(int(column.max()) for column in columns) >= given.canonical_size:
        return f"order {order}: an id of {given.canonical_size:,} or above"
    leading = given.rank_of[columns[0]]
    seen = 0
    for low, high, words, expected in reference(given, order, CHECK_POSITIONS):
        if ascending:
            start, stop = (int(place) for place in np.searchsorted(leading, [low, high]))
            chosen: Any = slice(start, stop)
        else:
            chosen = np.flatnonzero((leading >= low) & (leading < high))
        found = (leading[chosen] - np.uint32(low)).astype(np.uint64)
        for column in columns[1:]:
            found <<= np.uint64(given.rank_bits)
            found |= given.rank_of[column[chosen]]
        times = np.asarray(counts[chosen])
        if not ascending:
            by_ngram = np.argsort(found)
            found, times = found[by_ngram], times[by_ngram]
        if not np.array_equal(found, words):
            return f"order {order}: other n-grams than NumPy finds under leading ranks {low:,} to {high:,}"
        if not np.array_equal(times, expected):
            return f"order {order}: other counts than NumPy finds under leading ranks {low:,} to {high:,}"
        seen += len(words)
    return None if seen == len(counts) else f"order {order}: {len(counts):,} n-grams, NumPy finds {seen:,}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options that name the input, the same for every counting benchmark."""
    parser.add_argument("--corpus", help="text to tokenise: file or directory; the standard library's by default")
    parser.add_argument("--glob", default="*.py")
    parser.add_argument("--tokenizer", default="deepseek-v4")
    parser.add_argument("--tokens", type=Path, help="or a token store, as `engram tokenize` writes it; needs --vocab")
    parser.add_argument("--ids", type=Path, help="or ids in a .npy file, with --starts")
    parser.add_argument("--starts", type=Path, help="where the documents of --ids start, and their end")
    parser.add_argument("--vocab", type=Path, help="maps token ids to canonical ones; without it --ids are canonical")
    parser.add_argument("--canonical-size", type=int, help="bound of canonical --ids; the largest plus one by default")
    parser.add_argument("--first", type=int, help="use only the first N tokens")


def prepare(args: argparse.Namespace, directory: Path, *, with_store: bool = False) -> Path:
    """The input that the options name, as canonical ids, in `directory`.

    `with_store`: its token ids as a token store and its vocabulary lie there too, where it has a vocabulary.
    """
    started = time.perf_counter_ns()
    ids, starts, vocabulary, about = _given_tokens(args) if args.tokens or args.ids else _tokenized_text(args)
    if args.first:
        starts = np.append(starts[starts < args.first], min(args.first, len(ids)))
        ids = ids[: starts[-1]]
    canonical = vocabulary.canonical(ids) if vocabulary else ids
    about |= {
        "vocab_sha256": vocabulary.map_sha256 if vocabulary else None,
        "canonical_size": vocabulary.canonical_size if vocabulary else args.canonical_size or int(ids.max()) + 1,
        "n_documents": len(starts) - 1,
        "n_tokens": len(ids),
        "tiled": None,
        "prepare_ns": time.perf_counter_ns() - started,
    }
    write_input(directory, canonical, starts.astype(np.int64), about)
    if with_store and vocabulary:
        vocabulary.save(directory / "vocab.parquet")
        if args.tokens and not args.first:
            (directory / "tokens").symlink_to(args.tokens.resolve())
        else:
            from engram_tables.corpus.tokens.token_shards import write_tokens

            documents = (ids[start:stop] for start, stop in pairwise(starts.tolist()))
            size = vocabulary.token_count
            write_tokens(directory / "tokens", documents, token_size=size, tokenizer_sha256=vocabulary.tokenizer_sha256)
    return directory


Tokens = tuple[U32, I64, Any, dict[str, Any]]


def _given_tokens(args: argparse.Namespace) -> Tokens:
    """Token ids, document starts, the vocabulary or None, and where they come from."""
    from engram_tables.address.vocabulary import load_vocabulary

    vocabulary = load_vocabulary(args.vocab) if args.vocab else None
    if args.ids:
        ids = np.load(args.ids).astype(np.uint32, copy=False)
        starts = np.load(args.starts) if args.starts else np.array([0, len(ids)])
        return ids, starts, vocabulary, {"corpus": args.ids.name, "corpus_sha256": None}
    from engram_tables.corpus.tokens.token_store import open_tokens

    if vocabulary is None:
        raise SystemExit("--tokens holds token ids: give the --vocab that maps them")
    with open_tokens(args.tokens) as store:
        if store.n_dead:
            raise SystemExit(f"{args.tokens}: {store.n_dead:,} dead positions, which the peers have no form for")
        stream = store.read(0, store.n_tokens)
        about = {"corpus": args.tokens.name, "corpus_sha256": store.sha256}
    return stream.ids, stream.document_starts, vocabulary, about


def _tokenized_text(args: argparse.Namespace) -> Tokens:
    from engram_tables.address.vocabulary import build_vocabulary
    from engram_tables.corpus.reading.readers import find_documents
    from engram_tables.corpus.tokens.token_stream import tokenize_documents

    vocabulary = build_vocabulary(args.tokenizer)
    # Only the library itself: what is installed beside it differs from machine to machine.
    found = args.corpus or sysconfig.get_paths()["stdlib"]
    corpus = find_documents([found], glob=args.glob, exclude=("*-packages",), decode_errors="replace")
    stream = tokenize_documents(vocabulary.tokenizer(), corpus.documents())
    about = {
        "corpus": args.corpus or f"Python {platform.python_version()} standard library",
        "corpus_sha256": corpus.sha256,
        "corpus_bytes": corpus.read_bytes,
    }
    return stream.ids, stream.document_starts, vocabulary, about


def write_input(directory: Path, ids: U32, document_starts: I64, about: dict[str, Any]) -> Path:
    """Lay an input down where the processes of the run read it."""
    directory.mkdir(parents=True)
    np.save(directory / "ids.npy", ids)
    np.save(directory / "starts.npy", document_starts)
    (directory / "about.json").write_text(json.dumps(about))
    return directory


def resized(source: Path, directory: Path, n_tokens: int) -> Path:
    """An input of `n_tokens`: the first ones of `source`, or all of it again and again.

    Each repetition runs its ids through another permutation of the vocabulary, so that its n-grams are others while
    frequencies and lengths stay those of real text. Such an input is labelled `tiled`.
    """
    ids, starts = np.load(source / "ids.npy", mmap_mode="r"), np.load(source / "starts.npy")
    about = json.loads((source / "about.json").read_text())
    directory.mkdir(parents=True)
    written = np.lib.format.open_memmap(directory / "ids.npy", mode="w+", dtype=np.uint32, shape=(n_tokens,))
    all_starts = []
    generator = np.random.default_rng(0)
    for tile, begin in enumerate(range(0, n_tokens, len(ids))):
        stop = min(begin + len(ids), n_tokens)
        permuted = generator.permutation(about["canonical_size"]).astype(np.uint32) if tile else None
        for start in range(begin, stop, COPIED_TOKENS):
            end = min(start + COPIED_TOKENS, stop)
            part = ids[start - begin : end - begin]
            written[start:end] = part if permuted is None else permuted[part]
        all_starts.append(starts[:-1][starts[:-1] < stop - begin] + begin)
    written.flush()
    np.save(directory / "starts.npy", np.append(np.concatenate(all_starts), n_tokens))
    tiles = -(-n_tokens // len(ids))
    about |= {"n_tokens": n_tokens, "tiled": tiles if tiles > 1 else None}
    about["n_documents"] = sum(len(part) for part in all_starts)
    (directory / "about.json").write_text(json.dumps(about))
    return directory


def read_input(directory: Path) -> tuple[Input, dict[str, Any]]:
    """The input in this process's own memory, and what is known of it."""
    about = json.loads((directory / "about.json").read_text())
    given = Input(np.load(directory / "ids.npy"), np.load(directory / "starts.npy"), about["canonical_size"])
    return given, about
