"""`engram evaluate`: how well a next-token table predicts held-out text."""

from __future__ import annotations

import re
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from engram_cli import console
from engram_cli.corpus_reading import CorpusReading, reads_corpus
from engram_cli.options import (
    CorpusPaths,
    Force,
    JsonFlag,
    Threads,
    VocabFile,
)
from engram_cli.outputs import hand_out, refuse_outputs
from engram_tables.errors import InvalidInput, SpecMismatch
from engram_tables.units import parse_bytes

if TYPE_CHECKING:
    from engram_tables.address.vocabulary import Vocabulary
    from engram_tables.fetch.table import Table


@reads_corpus
def evaluate(
    table: Annotated[Path, typer.Argument(metavar="TABLE", help="A table of `build-table --init next-token`.")],
    text: CorpusPaths,
    counts: Annotated[
        Path | None,
        typer.Option(
            "--counts",
            metavar="DIR",
            help="The counts that the table was made of, for exact back-off beside it; without them a table is judged "
            "alone.",
        ),
    ] = None,
    vocab: VocabFile = None,
    heads: Annotated[
        str,
        typer.Option("--heads", metavar="N,N", help="Read only the first N heads, each by itself; all always are."),
    ] = "1,2,4,8",
    layer: Annotated[
        int | None, typer.Option("--layer", metavar="ID", help="Whose rows are read; the first whole one by default.")
    ] = None,
    sample: Annotated[
        str,
        typer.Option("--sample", metavar="N|all", help="Positions that are drawn and judged, each as likely as any."),
    ] = "10000",
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the draw.")] = 0,
    max_tokens: Annotated[
        int | None, typer.Option("--max-tokens", metavar="N", min=1, help="Of the text, from its beginning on.")
    ] = None,
    engine: Annotated[str, typer.Option("--engine", metavar="NAME", help="What reads the rows.")] = "auto",
    memory: Annotated[
        str,
        typer.Option(
            "--memory", metavar="SIZE", help="For the n-grams that are looked up at a time; never changes the result."
        ),
    ] = "2GiB",
    threads: Threads = None,
    *,
    reading: CorpusReading,
    force: Force = False,
    as_json: JsonFlag = False,
    record_file: Annotated[
        Path | None, typer.Option("--record", metavar="FILE", help="Write the whole record, every interval in it.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE", help="Draw accuracy by heads: .svg, .png or .pdf.")
    ] = None,
) -> None:
    """Say how often a next-token table names the token that follows, on text that it was not made of.

    Right is the very token (raw), or one that folds to the same canonical id; the two are told apart. Beside the
    table stands exact back-off over the counts: the longest n-gram that was seen, its most frequent next tokens, then
    those of shorter ones. Nothing is predicted across the edges of documents. Intervals hold 95 of 100 times, were
    other documents drawn. A text that was counted itself flatters, and is called so.

    --plot needs pip install 'engram-tables\\[report]'.

    \b
    Examples:
      engram evaluate table held-out --counts counts
      engram evaluate table src --glob '*.py' --counts counts --sample 100000 --record code.json
      engram evaluate table held-out --counts counts --heads 1,2,3,4,5,6,7,8 --plot heads.svg
    """
    from engram_cli.commands.evaluate_view import show_evaluation, warn_of_evaluation
    from engram_tables.corpus.counts.counts_store import open_counts
    from engram_tables.corpus.tokens.tokenize_corpus import tokens_of
    from engram_tables.fetch.table import ENGINE_NAMES, open_table
    from engram_tables.measure.evaluate.evaluating import EvaluatePlan, evaluate_table
    from engram_tables.measure.evaluate.guessing import next_token_reader

    if engine not in ENGINE_NAMES:
        raise InvalidInput(f"--engine: found {engine[:40]!r}, expected one of {', '.join(ENGINE_NAMES)}; name one")
    plan = EvaluatePlan(
        n_positions=None if sample == "all" else _number("--sample", sample), seed=seed, n_tokens=max_tokens,
        head_counts=tuple(_number("--heads", word) for word in heads.split(",")), layer_id=layer, engine=engine,
        memory_bytes=parse_bytes(memory), threads=threads,
    )  # fmt: skip
    refuse_outputs({"--record": record_file, "--plot": plot}, force=force)
    options = reading.options()
    with ExitStack() as opened:
        judged = opened.enter_context(open_table(table))
        # Before the text, which may take long to tokenise.
        next_token_reader(judged)
        peer = None if counts is None else opened.enter_context(open_counts(counts))
        vocabulary = _vocabulary_of(judged, vocab)
        tokens = opened.enter_context(
            tokens_of(
                text, vocabulary=vocabulary, **reading.files(), options=options, workers=threads,
                stage=console.progress,
            )
        )  # fmt: skip
        record = evaluate_table(judged, tokens, vocabulary, paths=text, plan=plan, counts=peer, stage=console.progress)
    warn_of_evaluation(record)
    hand_out(record, show_evaluation, as_json=as_json, record_file=record_file, force=force)
    if plot is not None:
        from engram_tables.measure.evaluate.plot import write_plot

        write_plot(plot, record, force=force)
        console.say(f"wrote {plot}")


def _vocabulary_of(table: Table, path: Path | None) -> Vocabulary:
    """The table's own, or the one that is named, which must be the same."""
    from engram_tables.address.vocabulary import load_vocabulary

    own = table.vocabulary
    if path is None:
        if own is None:
            raise InvalidInput(f"{table.path}: found no vocabulary in the table, expected one; give --vocab")
        return own
    named = load_vocabulary(path)
    if own is not None and own.map_sha256 != named.map_sha256:
        raise SpecMismatch(
            f"{path}: found the vocabulary {named.map_sha256}, expected the table's, {own.map_sha256}; leave "
            "--vocab out"
        )
    return named


def _number(option: str, word: str) -> int:
    if not re.fullmatch(r"\s*[0-9]{1,15}\s*", word):
        raise InvalidInput(f"{option}: found {word[:40]!r}, expected a whole number; write for instance 10000")
    return int(word)
