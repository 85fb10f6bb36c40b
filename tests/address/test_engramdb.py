"""Qwen's rows against those of another project, EngramDB 0.3.0, on a million tokens of real text."""

from __future__ import annotations

import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engram_tables import load_spec
from engram_tables.address.vocabulary import Vocabulary
from engram_tables.corpus.reading.readers import find_documents
from engram_tables.corpus.tokens.token_stream import tokenize_documents

N_TOKENS = 1_000_000
END_OF_SEQUENCE = 248_044
# EngramDB gives lists of Python integers, which take 40 bytes a row.
PART = 50_000


@pytest.fixture(scope="module")
def engramdb_rows() -> Callable[[list[int]], list[list[int]]]:
    package: Any = pytest.importorskip("engramdb", reason="engramdb-python 0.3.0 is not installed: pip install it")
    rows: Callable[[list[int]], list[list[int]]] = package.rowids_for_seq
    return rows


@pytest.fixture(scope="module")
def closed_documents(v4_vocabulary: Vocabulary) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Sources of the standard library as DeepSeek's tokens, each file closed by Qwen's end of sequence."""
    stdlib = Path(sysconfig.get_path("stdlib"))
    folders = [stdlib / name for name in ("asyncio", "email", "json", "unittest", "xml", "concurrent", "importlib")]
    corpus = find_documents([*folders, *sorted(stdlib.glob("[a-n]*.py"))], glob="*.py", decode_errors="replace")
    stream = tokenize_documents(v4_vocabulary.tokenizer(), corpus.documents())
    return np.insert(stream.ids.astype(np.int64), stream.document_starts[1:], END_OF_SEQUENCE)


@pytest.mark.slow
def test_a_million_rows_of_real_text_are_those_of_engramdb(
    engramdb_rows: Callable[[list[int]], list[list[int]]],
    closed_documents: np.ndarray[Any, np.dtype[np.int64]],
) -> None:
    ids = closed_documents[:N_TOKENS]
    assert len(ids) == N_TOKENS
    assert int((ids == END_OF_SEQUENCE).sum()) > 50
    ours = load_spec("qwen3.8-flash-next").address(ids).rows[:, 0]
    for start in range(0, N_TOKENS, PART):
        before = min(start, 2)
        theirs = np.array(engramdb_rows(ids[start - before : start + PART].tolist()))[before:]
        np.testing.assert_array_equal(theirs, ours[start : start + PART])
