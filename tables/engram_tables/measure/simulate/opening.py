"""A trace or a corpus as lookups, and what a record says of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engram_tables.address.spec import AddressSpec
from engram_tables.address.vocabulary import Vocabulary
from engram_tables.corpus.reading.documents import ReadOptions
from engram_tables.corpus.tokens.tokenize_corpus import tokens_of
from engram_tables.corpus.traffic.trace import is_trace, open_trace
from engram_tables.errors import InvalidInput, SpecMismatch
from engram_tables.measure.simulate.streams import Lookups, TokenLookups, TraceLookups
from engram_tables.units import Stage, unwatched


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """Lookups, and where they come from.

    Attributes
    ----------
    description
        JSON: kind (`trace` or `tokens`), paths, the digest of the stored tokens or trace, and how many tokens.
    """

    lookups: Lookups
    description: dict[str, Any]


@contextmanager
def open_text(
    paths: Sequence[str | Path],
    *,
    spec: AddressSpec | None,
    vocabulary: Vocabulary | None = None,
    glob: str = "*",
    exclude: Sequence[str] = (),
    options: ReadOptions | None = None,
    threads: int | None = None,
    stage: Stage = unwatched,
) -> Iterator[Text]:
    """Open one trace, which has its own spec, or the tokens of a corpus.

    Raises
    ------
    InvalidInput
        No token that looks anything up; a corpus without a spec; as `open_trace` and `tokens_of`.
    SpecMismatch
        A spec other than the trace's, or a vocabulary other than the spec's.
    """
    traced = [path for path in paths if is_trace(path)]
    if traced:
        if len(paths) > 1:
            raise InvalidInput(f"{traced[0]}: found a trace among {len(paths)} paths, expected it alone; give one")
        with open_trace(traced[0]) as trace:
            _check_spec(Path(traced[0]), trace.spec, spec)
            lookups = TraceLookups(trace)
            yield Text(lookups=lookups, description=_described("trace", paths, trace.sha256, lookups))
        return
    if spec is None:
        raise InvalidInput(
            f"{paths[0] if paths else 'corpus'}: found no trace, expected one or a spec that addresses the text; give "
            "--preset, --spec or --model"
        )
    with tokens_of(
        paths, vocabulary=vocabulary, glob=glob, exclude=exclude, options=options, workers=threads, stage=stage
    ) as store:
        with stage("looking over", "tokens") as progress:
            found = TokenLookups(spec, store, vocabulary, threads=threads, progress=progress)
        yield Text(lookups=found, description=_described("tokens", paths, store.sha256, found))


def _described(kind: str, paths: Sequence[str | Path], sha256: str, lookups: Lookups) -> dict[str, Any]:
    if lookups.n_tokens == lookups.dead.size:
        raise InvalidInput(
            f"{paths[0]}: found {lookups.n_tokens:,} tokens of which none looks anything up, expected some; give text"
        )
    return {
        "kind": kind,
        "paths": [str(path) for path in paths],
        "sha256": sha256,
        "n_tokens": lookups.n_tokens,
        "n_documents": lookups.document_starts.size - 1,
        "n_dead": int(lookups.dead.size),
    }


def _check_spec(path: Path, traced: AddressSpec, given: AddressSpec | None) -> None:
    if given is not None and given.fingerprint != traced.fingerprint:
        raise SpecMismatch(
            f"{path}: traced with the addressing {traced.fingerprint[:16]}, found {given.fingerprint[:16]} beside it; "
            "leave --preset, --spec and --model out, or trace again"
        )
