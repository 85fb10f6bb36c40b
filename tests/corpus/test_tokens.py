"""Documents to one token stream."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from engram_tables.corpus.reading.readers import Document
from engram_tables.corpus.tokens import token_stream as tokens
from engram_tables.corpus.tokens.token_stream import tokenize_documents


def documents(texts: list[str]) -> list[Document]:
    return [Document("test", text, len(text.encode())) for text in texts]


@pytest.mark.parametrize("batch_bytes", [1, 3, 100])
@pytest.mark.parametrize("texts", [[], [""], ["abc"], ["", "ab", "", "", "c", ""], ["z" * 50, "a"]])
def test_each_document_keeps_its_tokens_and_its_place(
    letter_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, texts: list[str], batch_bytes: int
) -> None:
    monkeypatch.setattr(tokens, "BATCH_BYTES", batch_bytes)
    stream = tokenize_documents(letter_tokenizer, documents(texts))
    assert stream.n_documents == len(texts)
    starts = stream.document_starts.tolist()
    found = [stream.ids[start:stop].tolist() for start, stop in itertools.pairwise(starts)]
    assert found == [[ord(letter) - 96 for letter in text] for text in texts]
    assert (stream.ids.dtype, stream.document_starts.dtype, stream.n_tokens) == ("uint32", "int64", len("".join(texts)))


def test_truncation_and_padding_of_the_tokenizer_file_change_nothing(letter_tokenizer: Tokenizer) -> None:
    letter_tokenizer.enable_truncation(2)
    letter_tokenizer.enable_padding(length=5)
    assert tokenize_documents(letter_tokenizer, documents(["abc", ""])).ids.tolist() == [1, 2, 3]
    assert letter_tokenizer.truncation is not None


@given(st.lists(st.text(max_size=6)))
def test_progress_counts_the_bytes_of_all_documents(texts: list[str]) -> None:
    from tokenizers.models import WordLevel

    seen: list[tuple[int, int]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokens, "BATCH_BYTES", 4)
        tokenize_documents(
            Tokenizer(WordLevel({"?": 0}, unk_token="?")),
            documents(texts),
            total_bytes=3,
            progress=lambda done, total: seen.append((done, total)),
        )
    n_bytes = sum(len(text.encode()) for text in texts)
    assert not texts or seen[-1] == (n_bytes, max(n_bytes, 3))
