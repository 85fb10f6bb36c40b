"""What a look at addressing is about: the spec of a table, a checkpoint, a spec's file or a preset. No row is read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from engram_tables.address.presets import PRESETS, load_spec
from engram_tables.errors import InvalidInput

if TYPE_CHECKING:
    from engram_tables.address.spec import AddressSpec
    from engram_tables.address.vocabulary import Vocabulary

_SPEC_SUFFIXES = (".json", ".npz")


class Subject(NamedTuple):
    """An addressing, and the vocabulary whose ids it hashes where one is known."""

    spec: AddressSpec
    vocabulary: Vocabulary | None


def find_subject(
    place: str | Path, *, layers: Sequence[int] | None = None, vocabulary: Vocabulary | None = None
) -> Subject:
    """The addressing that `place` names.

    Parameters
    ----------
    place
        A preset's name, a spec's .json or .npz, or a table or checkpoint, which is opened and closed again.
    layers
        Layer ids, for a preset whose ids are not certain.
    vocabulary
        Held against the spec. None: the table's own, where it holds one.

    Raises
    ------
    InvalidInput
        Nothing of the kind is there, or layers for something that names its own.
    SpecMismatch
        The vocabulary is another one.
    """
    is_spec = str(place) in PRESETS or (Path(place).suffix in _SPEC_SUFFIXES and Path(place).is_file())
    if is_spec:
        return Subject(load_spec(place, layers=layers, vocabulary=vocabulary), vocabulary)
    if layers is not None:
        raise InvalidInput(f"{place}: a table names its layers itself; leave out --layers")
    if not Path(place).exists():
        raise InvalidInput(
            f"{place}: found no such place, expected a table, a checkpoint, a spec's file or one of the presets "
            f"{', '.join(PRESETS)}"
        )
    from engram_tables.fetch.table import open_table

    with open_table(place, bundles=False) as table:
        if vocabulary is None:
            return Subject(table.spec, table.vocabulary)
        table.spec.check_vocabulary(vocabulary)
        return Subject(table.spec, vocabulary)
