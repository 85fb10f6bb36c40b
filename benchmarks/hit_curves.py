"""Hit ratios of DeepSeek V4.1 rows on code, on prose and on one repeated token: by cache size, streams and policy.

    python -m benchmarks.hit_curves --vocab V4.parquet [--code PATH …] [--prose PATH …] [--most-tokens 10000000]
                                    [--memory 512MiB] [--record FILE]

Code is Python's standard library and the packages beside this program; prose is the manual pages and plain text that
a Debian system installs. Each is replayed for 1, 4 and 16 streams at 0.5 to 64 GB, sampled by row so as to fit into
the memory; and its first 1.5 million tokens exactly, by LRU, one stream, as published figures have it: those are
printed beside. Distinct files are tokenised in an order of chance, and the first tokens taken. About six minutes on
two cores. The repeated token is the control: the run ends with exit code 6 if it is not called too repetitive, or if
a policy passes its bound.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import sysconfig
from glob import glob
from pathlib import Path
from typing import Any

import numpy as np

from engram_tables.address.presets import load_spec
from engram_tables.address.spec import AddressSpec
from engram_tables.address.vocabulary import Vocabulary, load_vocabulary
from engram_tables.corpus.reading.documents import DecodeErrors, ReadOptions
from engram_tables.corpus.tokens.token_stream import TokenStream
from engram_tables.corpus.tokens.tokenize_corpus import tokens_of
from engram_tables.corpus.traffic.token_addresses import TokenSource
from engram_tables.measure.caches.policies import Policy
from engram_tables.measure.environment import command_line, describe
from engram_tables.measure.simulate.opening import Text
from engram_tables.measure.simulate.report import SimulatePlan, simulate_text
from engram_tables.measure.simulate.streams import TokenLookups, Turns
from engram_tables.measure.simulate.units import row_bytes_of
from engram_tables.units import parse_bytes

PRESET = "deepseek-v4.1-flash"
SIZES_GB = (0.5, 1, 2, 4, 8, 16, 32, 64)
STREAMS = (1, 4, 16)
POLICIES = (Policy.LRU, Policy.TIERED, Policy.BELADY)
CODE = (f"{sysconfig.get_path('stdlib')}/**/*.py", f"{sysconfig.get_path('purelib')}/**/*.py")
PROSE = (
    "/usr/share/man/man[578]/*.gz",
    "/usr/share/doc/**/*.txt",
    "/usr/share/doc/**/*.md",
    "/usr/share/doc/**/README*",
)
PUBLISHED_TOKENS = 1_500_000
PUBLISHED = (
    {"cache_bytes": 10**9, "hit_ratio": 0.608, "misses_a_token_p99": 48},
    {"cache_bytes": 2 * 10**9, "hit_ratio": 0.663, "misses_a_token_p99": 48},
    {"cache_bytes": 5 * 10**9, "hit_ratio": 0.717, "misses_a_token_p99": 48},
)
"""LRU over 1.5 million tokens of a text that its author calls repetitive."""
REPEATED_TOKENS = 262_144


class Beginning:
    """The first tokens of a source."""

    def __init__(self, source: TokenSource, n_tokens: int) -> None:
        self._source = source
        self.n_tokens = min(n_tokens, source.n_tokens)
        self.n_documents, self.n_dead = source.n_documents, source.n_dead

    def read(self, start: int, stop: int) -> TokenStream:
        """As the source."""
        return self._source.read(start, stop)


class Repeated:
    """One document of one token."""

    n_tokens, n_documents, n_dead = REPEATED_TOKENS, 1, 0

    def read(self, start: int, stop: int) -> TokenStream:
        """As a token store."""
        return TokenStream(ids=np.full(stop - start, 1000, np.uint32), document_starts=np.array([0, stop - start]))


def main(arguments: list[str] | None = None) -> int:
    """Run and print; 0, or 6 where a check fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocab", type=Path, required=True, help="of DeepSeek V4, by `engram build-vocab`")
    parser.add_argument("--code", nargs="+", default=list(CODE), help="files, directories or patterns")
    parser.add_argument("--prose", nargs="+", default=list(PROSE))
    parser.add_argument("--most-tokens", type=int, default=10_000_000, help="of each text")
    parser.add_argument("--memory", type=parse_bytes, default=parse_bytes("512MiB"))
    parser.add_argument("--exact-memory", type=parse_bytes, default=parse_bytes("6GiB"), help="of the published shape")
    parser.add_argument("--record", type=Path)
    options = parser.parse_args(arguments)
    vocabulary = load_vocabulary(options.vocab)
    spec = load_spec(PRESET, vocabulary=vocabulary)
    texts = [
        {"name": "repeated token", **simulated(Repeated(), spec, vocabulary, options)},
        *(
            {"name": name, "paths": paths, **of_paths(paths, spec, vocabulary, options)}
            for name, paths in (("code", options.code), ("prose", options.prose))
        ),
    ]
    failures = list(checked(texts))
    record = {
        "schema": "engram.benchmark-hit-curves/1",
        "command": command_line(),
        "environment": describe(),
        "published": {"n_tokens": PUBLISHED_TOKENS, "points": PUBLISHED},
        "texts": texts,
        "failures": failures,
    }
    if options.record is not None:
        options.record.write_text(json.dumps(record, indent=1, allow_nan=False) + "\n")
    for failure in failures:
        print(f"check failed: {failure}", file=sys.stderr)
    return 6 if failures else 0


def mixed(patterns: list[str]) -> list[str]:
    """Distinct files in an order of chance: links name a file again, and those of a directory are of one kind."""
    found = {Path(name).resolve() for pattern in patterns for name in glob(pattern, recursive=True)}  # noqa: PTH207
    below = {path.resolve() for folder in found if folder.is_dir() for path in folder.rglob("*")}
    files = [str(path) for path in found | below if path.is_file()]
    return sorted(files, key=lambda name: hashlib.sha256(os.fsencode(name)).digest())


def of_paths(
    paths: list[str], spec: AddressSpec, vocabulary: Vocabulary, options: argparse.Namespace
) -> dict[str, Any]:
    """Both simulations of a corpus, shown."""
    read = ReadOptions(decode_errors=DecodeErrors.REPLACE)
    with tokens_of(mixed(paths), vocabulary=vocabulary, options=read) as store:
        curves = simulated(Beginning(store, options.most_tokens), spec, vocabulary, options)
        first = Beginning(store, min(PUBLISHED_TOKENS, options.most_tokens))
        return curves | {"tokens_sha256": store.sha256, "as_published": as_published(first, spec, vocabulary, options)}


def simulated(
    source: TokenSource, spec: AddressSpec, vocabulary: Vocabulary, options: argparse.Namespace
) -> dict[str, Any]:
    """Curves of all streams and policies."""
    plan = SimulatePlan(
        sizes_bytes=tuple(int(size * 10**9) for size in SIZES_GB), policies=POLICIES,
        turns=tuple(Turns(n_streams=n) for n in STREAMS), memory_bytes=options.memory,
    )  # fmt: skip
    record = replayed(source, spec, vocabulary, plan)
    repetition = record["representative"]
    print(
        f"\n{source.n_tokens:,} tokens: {repetition['verdict']} (seen {repetition['seen_share']}, growth "
        f"{repetition['growth']}), sampled {record['runs'][0]['sample_rate']:.4f}"
    )
    for curve in record["curves"]:
        ratios = " ".join(f"{point['hit_ratio']:.3f}{'' if point['is_full'] else '*'}" for point in curve["points"])
        print(f"{curve['n_streams']:3} streams, {curve['state']:6}, {curve['policy']:8} {ratios}")
    return {"simulation": record}


def as_published(
    source: TokenSource, spec: AddressSpec, vocabulary: Vocabulary, options: argparse.Namespace
) -> list[dict[str, Any]]:
    """LRU over the first tokens from an empty cache on, exactly."""
    plan = SimulatePlan(
        sizes_bytes=tuple(int(point["cache_bytes"]) for point in PUBLISHED), policies=(Policy.LRU,),
        memory_bytes=options.exact_memory,
    )  # fmt: skip
    cold, steady = replayed(source, spec, vocabulary, plan)["curves"]
    points = []
    for nth, published in enumerate(PUBLISHED):
        n_hits = sum(part["points"][nth]["hit_ratio"] * part["n_accesses"] for part in (cold, steady))
        points.append(
            {
                "cache_bytes": published["cache_bytes"],
                "hit_ratio": n_hits / (cold["n_accesses"] + steady["n_accesses"]),
                "error": steady["points"][nth]["error"],
                "misses_a_token_p50": steady["points"][nth]["misses_a_token_p50"],
                "misses_a_token_p99": steady["points"][nth]["misses_a_token_p99"],
                "published_hit_ratio": published["hit_ratio"],
            }
        )
        found, at_gb = points[-1]["hit_ratio"], published["cache_bytes"] / 1e9
        print(f"{at_gb:g} GB: {found:.3f}, published {published['hit_ratio']}")
    return points


def replayed(source: TokenSource, spec: AddressSpec, vocabulary: Vocabulary, plan: SimulatePlan) -> dict[str, Any]:
    """The record of `engram simulate` for a source."""
    lookups = TokenLookups(spec, source, vocabulary)
    description = {
        "kind": "tokens",
        "paths": [],
        "sha256": None,
        "n_tokens": source.n_tokens,
        "n_documents": lookups.document_starts.size - 1,
        "n_dead": int(lookups.dead.size),
    }
    return simulate_text(Text(lookups=lookups, description=description), row_bytes_of(spec, None), plan)


def checked(texts: list[dict[str, Any]]) -> Any:
    """What is wrong, in words."""
    control = texts[0]["simulation"]["representative"]["verdict"]
    if control != "too-repetitive":
        yield f"one repeated token is called {control}, expected too-repetitive"
    for text in texts:
        curves = text["simulation"]["curves"]
        for n_streams in STREAMS:
            here = [curve for curve in curves if curve["n_streams"] == n_streams]
            bound = totals(here, Policy.BELADY)
            for policy in (Policy.LRU, Policy.TIERED):
                for size, (found, most) in enumerate(zip(totals(here, policy), bound, strict=True)):
                    # The tiered reader counts rows that one step asks for twice, and its slots are a little fewer.
                    if found > most + 0.005:
                        yield f"{text['name']}, {n_streams} streams, size {size}: {policy} {found}, bound {most}"


def totals(curves: list[dict[str, Any]], policy: str) -> list[float]:
    """Hit ratios of both parts together, by size."""
    parts = [curve for curve in curves if curve["policy"] == policy]
    n_accesses = sum(part["n_accesses"] for part in parts)
    sizes = zip(*(part["points"] for part in parts), strict=True)
    return [
        sum(point["hit_ratio"] * part["n_accesses"] for point, part in zip(points, parts, strict=True)) / n_accesses
        for points in sizes
    ]


if __name__ == "__main__":
    sys.exit(main())
