"""Texts to token ids: a compiled scan where the tokenizer is understood, the tokenizers library where it is not.

Owns the reading of a tokenizer's model and added tokens, and the memory of the scan. The ids are those of the library's
`encode_batch_fast` without special tokens, truncation and padding, whatever the text: what the scan does not
understand goes through the library, a whole tokenizer or single texts.
"""

from __future__ import annotations

import itertools
import json
import unicodedata
from collections.abc import Iterator, Sequence
from enum import StrEnum
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from engram_tables.corpus.tokens.patterns import UnsupportedPattern
from engram_tables.corpus.tokens.scan_memory import PADDING, Caches, Model, new_caches, with_scratch
from engram_tables.threads import resolve_threads, run_slices

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from engram_tables.corpus.tokens.byte_pairs import Added
    from engram_tables.corpus.tokens.pretokens import Scanner

U8 = npt.NDArray[np.uint8]
U32 = npt.NDArray[np.uint32]
I64 = npt.NDArray[np.int64]
Encoded = tuple[U32, I64]

CHUNK_BYTES = 8 << 20
"""Text that is scanned at a time; a longer text is a chunk of its own."""
SLICE_BYTES = 1 << 16
"""Least text that is worth a thread."""
TRIALS = [
    "",
    " ",
    "Hello, world! It's 12345 o'clock\t\r\n\r\n  and   I'LL go… \u00a0\u3000 x\n",
    "def f(x):\n    return {'a': [1, 2.5e-10]}  # ----====\n\n\n        \t\tend   ",
    "Größe Ærø ſ K’s naïve e\u0301 ﬁ ß 1²³ ½ Ⅻ ٣٤٥٦ १२३४",
    "中文，標點。日本語のテキスト、カタカナ！한국어 문장 Привет, мир Ελληνικά עברית العربية हिन्दी ไทย",
    "👩‍👩‍👧‍👦🏳️‍🌈 🇩🇪 \u200b\ufeff\u2028\x00\x7f\x85",
]
"""Texts that every scan must encode as the library does before it is used at all: a net below the reading of the
tokenizer, not its proof."""


class Kind(StrEnum):
    """Who encodes."""

    SCAN = "scan"
    LIBRARY = "library"


class Encoder(Protocol):
    """What turns texts into token ids.

    Attributes
    ----------
    kind
        Whether the compiled scan works or the library.
    reason
        Why the library does; empty for a scan.
    """

    @property
    def kind(self) -> Kind: ...

    @property
    def reason(self) -> str: ...

    def encode(self, texts: Sequence[str]) -> Encoded:
        """Token ids of all texts, no special token added.

        Returns
        -------
        uint32 (n_tokens,) ids, and int64 (n_texts,): tokens of each text.

        Raises
        ------
        UnicodeEncodeError, TypeError
            A text that is no Unicode text (a lone surrogate), as the library raises it.
        """
        ...


def make_encoder(tokenizer: Tokenizer, *, threads: int | None = None, fast: bool = True) -> Encoder:
    """An encoder for `tokenizer`, which must not be changed afterwards.

    The scan needs about a second to read a pre-tokenizer and its model, and more when its kernels are compiled for
    the first time on a machine.

    Parameters
    ----------
    threads
        Threads of a scan (None: the CPUs this process may use). The library's own are bounded by RAYON_NUM_THREADS.
    fast
        False: the library in any case.
    """
    plain = _without_limits(tokenizer)
    n_threads = resolve_threads(threads)
    if not fast:
        return LibraryEncoder(plain, "asked for")
    try:
        encoder = ScanEncoder(plain, n_threads)
    except UnsupportedPattern as error:
        return LibraryEncoder(plain, str(error))
    library = LibraryEncoder(plain, "")
    found, expected = encoder.encode(TRIALS), library.encode(TRIALS)
    if not (np.array_equal(found[0], expected[0]) and np.array_equal(found[1], expected[1])):
        return LibraryEncoder(plain, "the scan gives other ids for a trial text")
    return encoder


class LibraryEncoder:
    """The library's batch call."""

    kind = Kind.LIBRARY

    def __init__(self, tokenizer: Tokenizer, reason: str) -> None:
        self._tokenizer = tokenizer
        self.reason = reason

    def encode(self, texts: Sequence[str]) -> Encoded:
        """See `Encoder.encode`; takes some 150 bytes a token of memory."""
        encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        counts = np.fromiter((len(encoding) for encoding in encodings), dtype=np.int64, count=len(texts))
        each_id = itertools.chain.from_iterable(encoding.ids for encoding in encodings)
        return np.fromiter(each_id, dtype=np.uint32, count=int(counts.sum())), counts


class ScanEncoder:
    """The compiled scan. Not for several threads at once: it owns one set of buffers."""

    kind = Kind.SCAN
    reason = ""

    def __init__(self, tokenizer: Tokenizer, n_threads: int) -> None:
        """Read the tokenizer; `UnsupportedPattern` if anything in it is not understood."""
        parsed = json.loads(tokenizer.to_str())
        _check_post_processor(parsed["post_processor"])
        if tokenizer.encode_special_tokens:
            raise UnsupportedPattern("encode_special_tokens")
        self._normalizer = tokenizer.normalizer if _normalizes(parsed["normalizer"]) else None
        from engram_tables.corpus.tokens.byte_pairs import read_added, read_model
        from engram_tables.corpus.tokens.pretokens import read_pre_tokenizer

        self._model: Model = read_model(parsed["model"])
        self._added: Added | None = read_added(tokenizer, parsed["added_tokens"])
        self._scanner: Scanner = read_pre_tokenizer(parsed["pre_tokenizer"])
        self._library = LibraryEncoder(tokenizer, "")
        self._threads = n_threads
        self._caches: list[Caches] = []
        self._text: U8 = np.empty(0, dtype=np.uint8)
        self._out: U32 = np.empty(0, dtype=np.uint32)
        self.n_pieces = 0
        """Pieces of all texts so far."""
        self.n_misses = 0
        """Those among them that were in no cache, pieces of more than 64 bytes left aside."""

    def encode(self, texts: Sequence[str]) -> Encoded:
        """See `Encoder.encode`; takes four bytes a byte of text at most, 64 MiB of caches and 28 bytes a byte of the
        longest piece of each thread."""
        if self._normalizer is None:
            return self._encode_plain(texts)
        # The library takes the texts that its normalizer would change.
        normalize = self._normalizer.normalize_str
        changed = [at for at, text in enumerate(texts) if not _is_surely_nfc(text) and normalize(text) != text]
        if not changed:
            return self._encode_plain(texts)
        library = set(changed)
        kept = self._encode_plain([text for at, text in enumerate(texts) if at not in library])
        return _interleave(kept, self._library.encode([texts[at] for at in changed]), changed, len(texts))

    def _encode_plain(self, texts: Sequence[str]) -> Encoded:
        parts = [self._encode_chunk(chunk, n_bytes) for chunk, n_bytes in self._chunks(texts)]
        if len(parts) == 1:
            return parts[0]
        ids = np.concatenate([ids for ids, _ in parts]) if parts else np.empty(0, dtype=np.uint32)
        counts = np.concatenate([counts for _, counts in parts]) if parts else np.empty(0, dtype=np.int64)
        return ids, counts

    def _chunks(self, texts: Sequence[str]) -> Iterator[tuple[list[bytes], int]]:
        chunk: list[bytes] = []
        n_bytes = 0
        for at, text in enumerate(texts):
            try:
                encoded = text.encode()
            except (UnicodeEncodeError, AttributeError):
                self._library.encode([texts[at]])
                raise
            if chunk and n_bytes + len(encoded) > CHUNK_BYTES:
                yield chunk, n_bytes
                chunk, n_bytes = [], 0
            chunk.append(encoded)
            n_bytes += len(encoded)
        if chunk:
            yield chunk, n_bytes

    def _encode_chunk(self, chunk: list[bytes], n_bytes: int) -> Encoded:
        text = np.frombuffer(b"".join([*chunk, bytes(PADDING)]), dtype=np.uint8)
        bounds = np.zeros(len(chunk) + 1, dtype=np.int64)
        np.cumsum([len(part) for part in chunk], out=bounds[1:])
        segments, foreign = self._segments(text, bounds)
        ids, counts = self._encode_segments(text, segments)
        # Sums of consecutive segments; a text of none has none.
        ends = np.zeros(len(segments.starts) + 1, dtype=np.int64)
        np.cumsum(counts, out=ends[1:])
        first = np.searchsorted(segments.owners, np.arange(len(chunk) + 1))
        text_counts = np.diff(ends[first])
        if not foreign:
            return ids, text_counts
        own = np.delete(text_counts, foreign)
        return _interleave(
            (ids, own), self._library.encode([chunk[at].decode() for at in foreign]), foreign, len(chunk)
        )

    def _segments(self, text: U8, bounds: I64) -> tuple[Segments, list[int]]:
        """Stretches between added tokens and these tokens; and the texts that the library must take whole."""
        from engram_tables.corpus.tokens.added_kernels import count_added, split_at_added

        every_text = np.arange(len(bounds) - 1)
        kept = bounds[1:] > bounds[:-1]
        foreign: list[int] = []
        added = self._added
        n_found = np.zeros(len(every_text), dtype=np.int64)
        if added is not None:
            tokens = added.tokens

            def count(start: int, stop: int) -> None:
                count_added(text, bounds[start : stop + 1], tokens, n_found[start:stop])

            grain = 1 + len(every_text) * SLICE_BYTES // (1 + len(text))
            run_slices(count, len(every_text), threads=self._threads, grain=grain)
        if not n_found.any():
            return Segments(bounds[:-1][kept], bounds[1:][kept], np.full(kept.sum(), -1), every_text[kept]), foreign
        assert added is not None
        if not added.simple:
            foreign = np.flatnonzero(n_found).tolist()
            kept &= n_found == 0
            return Segments(bounds[:-1][kept], bounds[1:][kept], np.full(kept.sum(), -1), every_text[kept]), foreign
        most = int(2 * n_found.sum() + len(every_text))
        columns = [np.empty(most, dtype=np.int64) for _ in range(4)]
        n_segments = split_at_added(text, bounds, added.tokens, n_found, *columns)
        return Segments(*(column[:n_segments] for column in columns)), foreign

    def _encode_segments(self, text: U8, segments: Segments) -> Encoded:
        starts, stops = segments.starts, segments.stops
        counts = np.zeros(len(starts), dtype=np.int64)
        if len(starts) == 0:
            return np.empty(0, dtype=np.uint32), counts
        from engram_tables.corpus.tokens.pretoken_kernels import AT_OUT

        # A token takes a byte at least, so every slice may write from the place of its first byte on.
        slices = _even_slices(stops, self._threads)
        margin = 16
        needed = len(text) + margin * (len(slices) + 1)
        out = self._out if len(self._out) >= needed else np.empty(needed, dtype=np.uint32)
        if needed <= 2 * CHUNK_BYTES:
            self._out = out
        while len(self._caches) < len(slices):
            self._caches.append(new_caches())
        places = [int(starts[first]) + margin * number for number, (first, _) in enumerate(slices)]
        states: list[I64 | None] = [None] * len(slices)

        def work(start: int, stop: int) -> None:
            for number in range(start, stop):
                first, last = slices[number]
                part = Segments(*(column[first:last] for column in segments))
                states[number] = self._run(number, text, part, out[places[number] :], counts[first:last])

        run_slices(work, len(slices), threads=len(slices), grain=1)
        found = []
        for place, state in zip(places, states, strict=True):
            assert state is not None
            found.append(out[place : place + state[AT_OUT]])
        return np.concatenate(found), counts

    def _run(self, number: int, text: U8, segments: Segments, out: U32, counts: I64) -> I64:
        from engram_tables.corpus.tokens import pretoken_kernels as kernels

        state = np.zeros(kernels.STATE_WORDS, dtype=np.int64)
        state[kernels.AT_BYTE] = -1
        caches = self._caches[number]
        while (
            kernels.encode_segments(text, *segments[:3], self._scanner, self._model, caches, out, counts, state)
            == kernels.MORE_SCRATCH
        ):
            caches = with_scratch(caches, int(state[kernels.NEEDED]))
        self.n_pieces += int(state[kernels.N_PIECES])
        self.n_misses += int(state[kernels.N_MISSES])
        return state


class Segments(NamedTuple):
    """Bounds of stretches of the text, in order, and the text that each is of."""

    starts: I64
    stops: I64
    added_ids: I64
    owners: I64


def _normalizes(parsed: dict[str, Any] | None) -> bool:
    """Whether there is a normalizer that may change a text."""
    match parsed:
        case None:
            return False
        case {"type": "Sequence", "normalizers": parts}:
            return any(_normalizes(part) for part in parts)
        case {"type": "NFC"}:
            return True
    # Of others it is not known that they leave ASCII alone, and a part of a text as they leave the text.
    raise UnsupportedPattern(f"normalizer {parsed['type']}, expected NFC or none")


def _is_surely_nfc(text: str) -> bool:
    """Whether Python's Unicode tables, of any version, prove that the library's NFC leaves a text alone.

    The normal form of an assigned character never changes again; one that is not assigned here may be a combining one
    for the library. One that is new to the library stands for itself there.
    """
    if text.isascii():
        return True
    points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")
    return not _unassigned()[points].any() and unicodedata.is_normalized("NFC", text)


@cache
def _unassigned() -> npt.NDArray[np.bool_]:
    """bool (0x110000,): code points without a character in this Python's Unicode."""
    categories = (unicodedata.category(chr(point)) == "Cn" for point in range(0x110000))
    return np.fromiter(categories, dtype=bool, count=0x110000)


def _check_post_processor(parsed: dict[str, Any] | None) -> None:
    """Raise if it might do more than to add special tokens, which nobody asks for here, and to mend offsets."""
    match parsed:
        case None | {"type": "ByteLevel" | "RobertaProcessing" | "BertProcessing"}:
            return
        case {"type": "Sequence", "processors": parts}:
            for part in parts:
                _check_post_processor(part)
            return
        case {"type": "TemplateProcessing", "single": single} if sum("Sequence" in part for part in single) == 1:
            return
    raise UnsupportedPattern(f"post-processor {parsed['type']}")


def _even_slices(stops: I64, n_threads: int) -> list[tuple[int, int]]:
    """Consecutive segments of about equal bytes, one slice a thread, none empty."""
    n_bytes = int(stops[-1])
    wanted = max(1, min(n_threads, n_bytes // SLICE_BYTES))
    cuts = np.searchsorted(stops, [n_bytes * k // wanted for k in range(1, wanted)], side="left") + 1
    bounds = sorted({0, *cuts.tolist(), len(stops)})
    return list(itertools.pairwise(bounds))


def _interleave(scanned: Encoded, foreign: Encoded, foreign_texts: Sequence[int], n_texts: int) -> Encoded:
    """Put the ids of texts that the library encoded between those of the scanned ones, in the order of the texts."""
    is_foreign = np.zeros(n_texts, dtype=bool)
    is_foreign[np.asarray(foreign_texts, dtype=np.int64)] = True
    counts = np.empty(n_texts, dtype=np.int64)
    counts[is_foreign] = foreign[1]
    counts[~is_foreign] = scanned[1]
    of_foreign = np.repeat(is_foreign, counts)
    ids = np.empty(len(of_foreign), dtype=np.uint32)
    ids[of_foreign] = foreign[0]
    ids[~of_foreign] = scanned[0]
    return ids, counts


def _without_limits(tokenizer: Tokenizer) -> Tokenizer:
    """`tokenizer`, or a copy without its file's truncation and padding: both change counts in silence."""
    if tokenizer.truncation is None and tokenizer.padding is None:
        return tokenizer
    copy: Tokenizer = type(tokenizer).from_str(tokenizer.to_str())
    copy.no_truncation()
    copy.no_padding()
    return copy
