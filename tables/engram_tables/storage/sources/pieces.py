"""The tensors of a checkpoint that hold rows, found by the ends of their names.

Prefixes differ between releases and converters and are not looked at, but for the layer's number. Shapes and dtypes are
judged elsewhere; no data are read here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto

from engram_tables.errors import InvalidInput
from engram_tables.safetensors_file import SafetensorsHeader

WEIGHTS, SCALES, BIASES, RECORDS = "weights", "scales", "biases", "records"
# What the last word of a tensor's name makes of it; any other word names a part of its own.
_PARTS = {
    "weight": WEIGHTS, "scale": SCALES, "scales": SCALES, "weight_scale": SCALES,
    "weight_scale_inv": SCALES, "biases": BIASES, "records": RECORDS,
}  # fmt: skip
_IN_RECORD = (RECORDS, WEIGHTS, SCALES, BIASES)
_SHOWN = 4


class Placing(Enum):
    """How the tensors of one layer make up its rows."""

    WHOLE = auto()
    """One has them all."""
    SHARDS = auto()
    """Each has equally many, in the order of their numbers, the last ones fewer."""
    COLUMNS = auto()
    """Each has those of one head, numbered as columns are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """A family of names.

    Attributes
    ----------
    pattern
        Finds the end of a tensor's name: group `n` is the number of a shard or column, `word` the last word.
    """

    name: str
    placing: Placing
    pattern: re.Pattern[str]


def _form(name: str, placing: Placing, stem: str) -> Form:
    return Form(name=name, placing=placing, pattern=re.compile(rf"{stem}\.(?P<word>[A-Za-z0-9_]+)$"))


FORMS = (
    _form("deepseek", Placing.WHOLE, r"(?:^|\.)engram\.(?:embed_tokens|embed)"),
    _form("qwen", Placing.SHARDS, r"(?:^|\.)ngram_embedding(?:\.(?:shard_|shards\.)(?P<n>[0-9]{1,6}))?"),
    _form("longcat", Placing.COLUMNS, r"(?:^|\.)(?:ngram_embeddings\.embedders\.|oe_embed_tokens)(?P<n>[0-9]{1,4})"),
    _form("engram-peft", Placing.WHOLE, r"(?:^|\.)multi_head_embedding\.embedding"),
    _form("gemma", Placing.WHOLE, r"(?:^|\.)embed_tokens_per_layer"),
    _form("mtplx", Placing.WHOLE, r"^ngram"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundTensor:
    """A tensor as its header states it; `start` and `stop` are bytes from the start of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    header: SafetensorsHeader
    start: int
    stop: int

    @property
    def where(self) -> str:
        """For messages."""
        return f"{self.header.where}: {self.name}"

    def __str__(self) -> str:
        return f"{self.name} {self.dtype} {list(self.shape)}"


@dataclass(slots=True, kw_only=True)
class Piece:
    """Consecutive rows of one layer: a tensor for each part of a record.

    Attributes
    ----------
    stem
        What the names of its tensors have in common.
    layer_id
        None where the names do not say; then the spec's only layer is meant.
    number
        Of the shard or column; 0 where there is one.
    """

    stem: str
    layer_id: int | None
    number: int
    tensors: dict[str, FoundTensor] = field(default_factory=dict)

    @property
    def n_rows(self) -> int:
        """As every tensor's shape says, which is checked."""
        return next(iter(self.tensors.values())).shape[0]

    def in_order(self) -> list[FoundTensor]:
        """The tensors as their parts follow each other in a record: the known ones, then others by name."""
        names = [part for part in _IN_RECORD if part in self.tensors]
        return [self.tensors[part] for part in (*names, *sorted(self.tensors.keys() - set(names)))]

    def columns(self) -> dict[str, tuple[str, int]]:
        """Dtype and elements a row of each part."""
        return {part: (tensor.dtype, tensor.shape[1]) for part, tensor in self.tensors.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """The tables of one form.

    Attributes
    ----------
    pieces
        By layer and number.
    scalars
        Tensors of one value beside them, by layer.
    """

    form: Form
    pieces: tuple[Piece, ...]
    scalars: dict[int | None, list[FoundTensor]]


def find_pieces(where: str, headers: Sequence[SafetensorsHeader]) -> Found | None:
    """The tables among the tensors of `headers`; None where no name is known.

    Raises
    ------
    InvalidInput
        Tables of two forms, a name in two files, two tables of one layer, a tensor without rows, or parts with
        different rows.
    """
    holders: dict[str, FoundTensor] = {}
    found: dict[str, Found] = {}
    by_stem: dict[str, Piece] = {}
    for header in headers:
        for name, info in header.tensors.items():
            if (matched := _match(name)) is None:
                continue
            form, match = matched
            tensor = FoundTensor(
                name=name, dtype=info.dtype, shape=info.shape, header=header, start=info.start, stop=info.stop
            )
            if name in holders:
                raise InvalidInput(
                    f"{where}: found {name} in {holders[name].header.name} and in {header.name}, expected it once; "
                    "name the file that holds the one you mean"
                )
            holders[name] = tensor
            of_form = found.setdefault(form.name, Found(form=form, pieces=(), scalars={}))
            layer_id = layer_of(name[: match.start()])
            if math.prod(tensor.shape) == 1 and part_of(name) != WEIGHTS:
                of_form.scalars.setdefault(layer_id, []).append(tensor)
                continue
            number = int(match.groupdict().get("n") or 0)
            stem = name[: match.start("word") - 1]
            piece = by_stem.setdefault(stem, Piece(stem=stem, layer_id=layer_id, number=number))
            _add(piece, part_of(name), tensor)
    if len(found) > 1:
        raise InvalidInput(
            f"{where}: found tables of {' and of '.join(found)}, expected those of one form; name the file that holds "
            "the one you mean"
        )
    if not found or not by_stem:
        return None
    only = next(iter(found.values()))
    return Found(form=only.form, pieces=_in_order(where, by_stem.values()), scalars=only.scalars)


def is_table_name(name: str) -> bool:
    """Whether a tensor of this name is taken for a part of rows, or for a scale of theirs."""
    return _match(name) is not None


def layer_of(prefix: str) -> int | None:
    """The last number among the parts of the beginning of a tensor's name."""
    numbers = [part for part in prefix.split(".") if re.fullmatch(r"[0-9]{1,9}", part)]
    return int(numbers[-1]) if numbers else None


def listed(names: Iterable[object]) -> str:
    """The first few, for messages."""
    texts = [str(name) for name in names]
    return ", ".join(texts[:_SHOWN]) + (f" and {len(texts) - _SHOWN} more" if len(texts) > _SHOWN else "")


def looks_like_rows(shape: Sequence[int], n_rows: Sequence[int]) -> bool:
    """Whether a tensor of an unknown name may be a table."""
    return len(shape) == 2 and shape[0] in n_rows and shape[1] > 0


def _match(name: str) -> tuple[Form, re.Match[str]] | None:
    for form in FORMS:
        if (match := form.pattern.search(name)) is not None:
            return form, match
    return None


def part_of(name: str) -> str:
    """Which part of its table's records a tensor holds, by the last word of its name."""
    word = name.rpartition(".")[2]
    return _PARTS.get(word, word)


def _add(piece: Piece, part: str, tensor: FoundTensor) -> None:
    if len(tensor.shape) != 2:
        raise InvalidInput(f"{tensor.where} has shape {list(tensor.shape)}, expected rows of values; is it a table?")
    if part in piece.tensors:
        raise InvalidInput(
            f"{tensor.where} and {piece.tensors[part].name} are both the {part} of {piece.stem}, expected one of them; "
            "one was left over by a conversion: convert it anew"
        )
    piece.tensors[part] = tensor
    first = next(iter(piece.tensors.values()))
    if tensor.shape[0] != first.shape[0]:
        raise InvalidInput(
            f"{tensor.where} has {tensor.shape[0]} rows, {first.name} has {first.shape[0]}, expected as many; they "
            "belong to different tables"
        )


def _in_order(where: str, pieces: Iterable[Piece]) -> tuple[Piece, ...]:
    placed: dict[tuple[int, int], Piece] = {}
    for piece in pieces:
        key = -1 if piece.layer_id is None else piece.layer_id, piece.number
        if key in placed:
            raise InvalidInput(
                f"{where}: found {placed[key].stem} and {piece.stem}, expected one table of a layer; name the file "
                "that holds the one you mean"
            )
        placed[key] = piece
    return tuple(placed[key] for key in sorted(placed))
