"""By which spec a source's rows are read: what the source itself states, and one that is given, held against it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from engram_tables.address.released.findings import Finding, contradiction
from engram_tables.address.spec import AddressSpec
from engram_tables.address.vocabulary import Vocabulary
from engram_tables.byte_files import ByteFile, Folder
from engram_tables.errors import InvalidInput, SpecMismatch
from engram_tables.safetensors_file import SafetensorsHeader

CONFIG_NAME = "config.json"
_SHOWN_CHARS = 60


def agreed_spec(
    where: str,
    given: AddressSpec | None,
    stated: Callable[[], AddressSpec],
    *,
    is_stated: bool = True,
    findings: Callable[[], Iterable[Finding]] | None = None,
) -> tuple[AddressSpec, tuple[str, ...]]:
    """The spec to read by, and what a user should know of it.

    Parameters
    ----------
    given
        By the caller; None to take the source's own.
    stated
        Derives the source's own, or raises what `open_source` does.
    is_stated
        Whether the source says anything of it; without, a given one is all there is.
    findings
        The constants that it states one by one, asked where no recipe that is known here derives them.

    Raises
    ------
    SpecMismatch
        The given one addresses rows otherwise than the source says. Shapes cannot tell: two models of one size have
        equally many rows.
    """
    if given is None:
        return stated(), ()
    if not is_stated:
        return given, ()
    try:
        own = stated()
    except (InvalidInput, SpecMismatch) as error:
        # A recipe of its own, a vocabulary that is not here: that is what a spec is given for.
        _check(where, contradiction(given, _known(findings)))
        return given, (f"read by the spec {given.name}; the source's own addressing is not known: {error}",)
    _check(where, _difference(given, own))
    return given, ()


def _known(findings: Callable[[], Iterable[Finding]] | None) -> Iterable[Finding]:
    try:
        return () if findings is None else findings()
    except (InvalidInput, SpecMismatch):
        return ()


def _check(where: str, difference: str | None) -> None:
    if difference is not None:
        raise SpecMismatch(
            f"{where}: {difference}; they belong to different models: leave the spec out to read the source by its "
            "own, or name the other source"
        )


def spec_of_gguf(file: ByteFile, vocabulary: Vocabulary | None, eos: int | None) -> AddressSpec:
    """The spec in a GGUF file's metadata."""
    from engram_tables.address.released.checkpoints import spec_from_gguf

    return spec_from_gguf(file, vocabulary=vocabulary, eos=eos)


def findings_of_gguf(file: ByteFile, vocabulary: Vocabulary | None) -> Iterable[Finding]:
    """What a GGUF file's metadata and shapes state, whatever derives it."""
    from engram_tables.address.released.gguf import read_model

    return read_model(file, vocabulary=vocabulary, eos=None).findings


def spec_of_config(folder: Folder, config: Path | None, vocabulary: Vocabulary | None, eos: int | None) -> AddressSpec:
    """The spec of the config in a folder whose tensors are told by a manifest."""
    from engram_tables.address.released.configs import spec_from_config

    beside = config or folder.find(CONFIG_NAME)
    if beside is None:
        raise InvalidInput(f"{folder.where}: found no {CONFIG_NAME} beside its manifest, expected one; name it")
    return spec_from_config(beside, vocabulary=vocabulary, eos=eos)


def spec_of_tensors(
    place: ByteFile | Folder,
    headers: Sequence[SafetensorsHeader],
    config: Path | None,
    vocabulary: Vocabulary | None,
    eos: int | None,
) -> AddressSpec:
    """The spec of the config beside tensors and of the constants among them."""
    from engram_tables.address.released.checkpoints import spec_from_headers

    return spec_from_headers(place, headers, config=config, vocabulary=vocabulary, eos=eos)


def has_config(place: ByteFile | Folder, config: Path | None) -> bool:
    """Whether a config lies beside the source, or is named."""
    if config is not None:
        return True
    found = (place if isinstance(place, Folder) else place.folder()).find(CONFIG_NAME)
    if found is not None:
        found.close()
    return found is not None


def _difference(given: AddressSpec, own: AddressSpec) -> str | None:
    """The first constant of the layers in `given` that `own` contradicts, with both values."""
    from engram_tables.address.spec_files import addressing_to_json

    mine, theirs = addressing_to_json(given), addressing_to_json(own)
    of_layer = {layer["layer_id"]: layer for layer in theirs["layers"]}
    pairs: list[tuple[str, Any, Any]] = [(key, mine[key], theirs[key]) for key in mine if key != "layers"]
    for layer in mine["layers"]:
        layer_id = layer["layer_id"]
        if layer_id not in of_layer:
            return f"found layers {', '.join(map(str, own.layer_ids))}, the spec {given.name} has layer {layer_id}"
        pairs += [(f"{key} of layer {layer_id}", layer[key], of_layer[layer_id][key]) for key in layer]
    for what, value, found in pairs:
        if value != found:
            return f"found {what} {_shown(found)}, the spec {given.name} says {_shown(value)}"
    return None


def _shown(value: Any) -> str:
    text = str(value)
    return text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]}…"
