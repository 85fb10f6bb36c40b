"""Small vocabularies, token stores and counts, for the tests beside this file."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engram_tables.address.vocabulary import Rule, Vocabulary
from engram_tables.corpus.counts import count_work, counts_writer, runs, unpacking
from engram_tables.corpus.counts.count_corpus import CountedCorpus, plan_count, run_count
from engram_tables.corpus.tokens.token_shards import write_tokens
from engram_tables.corpus.tokens.token_store import DEAD

Documents = Sequence[Sequence[int | None]]


def vocabulary_of(canonical_ids: Any, tokenizer_json: bytes = b"{}") -> Vocabulary:
    return Vocabulary(
        rule=Rule.IDENTITY,
        canonical_ids=np.array(canonical_ids, dtype=np.uint32),
        tokens=[],
        tokenizer_json=tokenizer_json,
        source="a test",
    )


def store(path: Path, documents: Documents, vocabulary: Vocabulary) -> Path:
    stored = [[DEAD if token is None else token for token in document] for document in documents]
    write_tokens(
        path, stored, token_size=vocabulary.token_count, tokenizer_sha256=vocabulary.tokenizer_sha256, shard_documents=3
    )
    return path


def count_store(tokens: Path, output: Path, vocabulary: Vocabulary, **options: Any) -> CountedCorpus:
    running = {name: options.pop(name) for name in ("threads", "force") if name in options}
    plan = plan_count([tokens], vocabulary=vocabulary, output=output, force=running.get("force", False), **options)
    return run_count(plan, **running)


@contextmanager
def small_pieces(
    *, part_tokens: int = 7, group_rows: int = 4, chunk_tokens: int | None = None, slice_windows: int | None = None
) -> Iterator[pytest.MonkeyPatch]:
    """Parts, row groups, chunks and slices small enough that a few tokens make several of each."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(counts_writer, "PART_TOKENS", part_tokens)
        patch.setattr(counts_writer, "ROW_GROUP_ROWS", group_rows)
        patch.setattr(count_work, "ROW_GROUP_ROWS", group_rows)
        if chunk_tokens is not None:
            patch.setattr(count_work.CountWork, "chunk_tokens", lambda *_: chunk_tokens)
        if slice_windows is not None:
            patch.setattr(runs, "SLICE_WINDOWS", slice_windows)
            patch.setattr(unpacking, "STRETCH", 3)
        yield patch


def contents(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes() for path in sorted(directory.rglob("*")) if path.is_file()
    }


def digests(directory: Path) -> dict[str, str]:
    return {name: hashlib.sha256(content).hexdigest() for name, content in contents(directory).items()}
