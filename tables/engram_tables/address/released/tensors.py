"""Which tensors of a checkpoint are n-gram tables or their constants, and what each says of the addressing.

Names are known by their ends, since prefixes differ between releases and converters. Of tables only shapes are looked
at; of the constants, which are small, the values. Which bytes are rows is for `storage.sources` to say.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from engram_tables.address.released.findings import Fact, Finding
from engram_tables.byte_files import ByteFile, Folder
from engram_tables.errors import InvalidInput
from engram_tables.safetensors_file import SafetensorsHeader, TensorInfo, missing_files, read_integers

_NAMES = re.compile(
    r"""(?:^|\.)(?:
      (?:ple_embedding\.)?(?P<qwen_constants>layer_multipliers|ngram_heads_vocab_sizes|ngram_heads_offsets)
    | ngram_embedding\.(?:shard_|shards\.)(?P<qwen_shard>[0-9]{1,6})\.weight
    | ngram_embedding\.(?P<qwen_whole>weight)
    | engram\.(?P<deepseek>embed|embed_tokens)\.weight
    | ngram_embeddings\.embedders\.(?P<longcat>[0-9]{1,4})\.weight
    | oe_embed_tokens(?P<longcat_oe>[0-9]{1,4})\.weight
    | (?P<gemma>embed_tokens_per_layer)\.weight
    | multi_head_embedding\.(?P<heads>embedding\.weight|offsets)
    )$
    | ^ngram\.(?P<mtplx>weight|records)$""",
    re.VERBOSE,
)
_QWEN_FACTS = {
    "layer_multipliers": Fact.MULTIPLIERS,
    "ngram_heads_vocab_sizes": Fact.MODULI,
    "ngram_heads_offsets": Fact.OFFSETS,
}
# The presets that a family's tensors may belong to. Gemma has none: how ids past its table are read depends on the
# model's vocabulary, which no tensor of the table tells.
_PRESETS = {
    "Qwen": ("qwen3.8-flash-next",),
    "DeepSeek": ("deepseek-v4.1-flash",),
    "LongCat (embedders)": ("longcat-flash-lite",),
    "LongCat (oe)": ("longcat-2.0",),
    "Gemma": (),
    "engram-peft or the demo": ("engram-demo", "engram-peft"),
}
# Other dtypes hold packed codes: their second dimension is no number of values.
_VALUE_DTYPES = {"F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "F16", "BF16", "F32", "F64"}


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundTables:
    """What the tensors of one checkpoint say.

    Attributes
    ----------
    family
        For people.
    presets
        Names of those that tables of the family may belong to.
    """

    family: str
    presets: tuple[str, ...]
    findings: tuple[Finding, ...]


def holds_tables(headers: Sequence[SafetensorsHeader]) -> bool:
    """Whether any of the tensors is a table or a constant by its name."""
    return any(_NAMES.search(name) for header in headers for name in header.tensors)


def find_tables(place: ByteFile | Folder, headers: Sequence[SafetensorsHeader]) -> FoundTables:
    """The tables among the tensors of `headers`, which were read at `place`.

    Raises
    ------
    InvalidInput
        No table, those of two families, or a tensor of another shape or dtype than its name promises.
    """
    findings: dict[str, list[Finding]] = {}
    holders: dict[str, str] = {}
    shards: dict[int | None, dict[int, int]] = {}
    for header in headers:
        for name, info in header.tensors.items():
            match = _NAMES.search(name)
            if match is None or match.lastgroup is None:
                continue
            if name in holders:
                raise InvalidInput(
                    f"{place.where}: found {name} in {holders[name]} and in {header.name}, expected it once; name "
                    "the file that holds the one you mean"
                )
            holders[name] = header.name
            layer_id = _layer_id(name[: match.start()])
            family, found = _read(header, name, info, match, layer_id)
            findings.setdefault(family, []).extend(found)
            if match.lastgroup == "qwen_shard":
                shards.setdefault(layer_id, {})[int(match["qwen_shard"])] = info.shape[0]
    if len(findings) != 1:
        raise _refused(place, headers, list(findings))
    family, found = findings.popitem()
    found += (_rows_of_shards(place, layer_id, rows) for layer_id, rows in shards.items())
    return FoundTables(family=family, presets=_PRESETS[family], findings=tuple(found))


def _layer_id(prefix: str) -> int | None:
    """The last number among a tensor's name's parts."""
    numbers = [part for part in prefix.split(".") if re.fullmatch(r"[0-9]{1,9}", part)]
    return int(numbers[-1]) if numbers else None


def _read(
    header: SafetensorsHeader, name: str, info: TensorInfo, match: re.Match[str], layer_id: int | None
) -> tuple[str, list[Finding]]:
    """A tensor's family and what it says; the rows of shards are summed elsewhere."""
    where = f"{header.name}: {name}"

    def of_array(fact: Fact) -> list[Finding]:
        values = tuple(read_integers(header, name).reshape(-1).tolist())
        return [Finding(where=where, fact=fact, values=values, layer_id=layer_id)]

    def of_table(table_layer: int | None, *, column: int | None = None, n_rows: bool = True) -> list[Finding]:
        if len(info.shape) != 2:
            raise InvalidInput(
                f"{header.where}: {name} has shape {info.shape}, expected rows of values; is it a table?"
            )
        found = []
        if n_rows:
            fact = Fact.ROWS if column is None else Fact.MODULI
            found.append(Finding(where=where, fact=fact, values=(info.shape[0],), layer_id=table_layer, column=column))
        if info.dtype in _VALUE_DTYPES:
            found.append(Finding(where=where, fact=Fact.ROW_WIDTH, values=(info.shape[1],), layer_id=table_layer))
        return found

    match match.lastgroup:
        case "qwen_constants":
            return "Qwen", of_array(_QWEN_FACTS[match["qwen_constants"]])
        case "qwen_shard":
            return "Qwen", of_table(layer_id, n_rows=False)
        case "qwen_whole":
            return "Qwen", of_table(layer_id)
        case "deepseek":
            return "DeepSeek", of_table(layer_id)
        case "longcat":
            return "LongCat (embedders)", of_table(0, column=int(match["longcat"]))
        case "longcat_oe":
            return "LongCat (oe)", of_table(0, column=int(match["longcat_oe"]))
        case "gemma":
            return "Gemma", of_table(0)
        case "mtplx":
            return "Qwen", [*of_table(None), *_stated_width(header, where)]
        case _:
            found = of_array(Fact.OFFSETS) if match["heads"] == "offsets" else of_table(layer_id)
            return "engram-peft or the demo", found


def _stated_width(header: SafetensorsHeader, where: str) -> list[Finding]:
    """The width of a sidecar's rows, which its packed codes do not show."""
    stated = header.metadata.get("dim", "")
    if not re.fullmatch(r"[1-9][0-9]{0,6}", stated):
        return []
    return [Finding(where=f"{where}, dim", fact=Fact.ROW_WIDTH, values=(int(stated),))]


def _rows_of_shards(place: ByteFile | Folder, layer_id: int | None, rows: dict[int, int]) -> Finding:
    """The rows of a sharded table: all of them only where no shard can be missing."""
    sizes = [rows[shard] for shard in sorted(rows)]
    if any(size != sizes[0] for size in sizes[:-1]) or sizes[-1] > sizes[0]:
        raise InvalidInput(
            f"{place.where}: found shards of {sorted(set(sizes))} rows, expected equal ones and a shorter last"
        )
    is_whole = isinstance(place, Folder) and sorted(rows) == list(range(len(rows))) and not missing_files(place)
    return Finding(
        where=f"{place.where}: {len(rows)} shards of ngram_embedding",
        fact=Fact.ROWS if is_whole else Fact.ROWS_AT_LEAST,
        values=(sum(rows.values()),),
        layer_id=layer_id,
    )


def _refused(place: ByteFile | Folder, headers: Sequence[SafetensorsHeader], families: Sequence[str]) -> InvalidInput:
    if families:
        return InvalidInput(
            f"{place.where}: found tables of {' and of '.join(families)}, expected those of one family; name the file "
            "that holds the one you mean"
        )
    n_tensors = sum(len(header.tensors) for header in headers)
    missing = missing_files(place)
    elsewhere = f" ({len(missing)} files of its index are not here, {missing[0]} first)" if missing else ""
    return InvalidInput(
        f"{place.where}: found {n_tensors} tensors in {len(headers)} files{elsewhere}, expected a table or its "
        f"constants among them, as {', '.join(_PRESETS)} name them; name the file that holds it, or the config.json "
        "alone"
    )
