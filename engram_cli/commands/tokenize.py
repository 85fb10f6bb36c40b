"""`engram tokenize`: a corpus to token ids on disk, once, for every command that comes after."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from engram_cli.console import emit, progress, say, show
from engram_cli.corpus_reading import CorpusReading, reads_corpus
from engram_cli.options import (
    CorpusPaths,
    DryRun,
    Force,
    JsonFlag,
)
from engram_tables.units import format_bytes

if TYPE_CHECKING:
    from engram_tables.address.vocabulary import Vocabulary
    from engram_tables.corpus.tokens.tokenize_corpus import TokenizedCorpus, TokenizePlan

_SHOWN_BAD_LINES = 5


@reads_corpus
def tokenize(
    corpus: CorpusPaths,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="The token store to write.")],
    vocab: Annotated[
        Path | None,
        typer.Option(
            "--vocab", metavar="FILE", help="A vocabulary written by `engram build-vocab`: its tokenizer is used."
        ),
    ] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(
            "--tokenizer",
            metavar="NAME",
            help="Instead of --vocab: a tokenizer.json, a directory that holds one, or deepseek-v4 / deepseek-v3.",
        ),
    ] = None,
    *,
    reading: CorpusReading,
    workers: Annotated[
        int | None,
        typer.Option(
            "--workers",
            min=1,
            help="Processes; all usable CPUs by default, one for a small corpus. Never changes a byte.",
        ),
    ] = None,
    restart: Annotated[
        bool, typer.Option("--restart", help="Remove what an earlier run left in DIR.work, and begin anew.")
    ] = False,
    force: Force = False,
    dry_run: DryRun = False,
    json_lines: JsonFlag = False,
) -> None:
    """Tokenise a corpus once, and keep the token ids with their documents, for `engram count` and others to reuse.

    No special token is added. Token ids in .npy, .bin, JSONL or Parquet are stored as they are; none may be larger
    than the tokenizer knows. A run that is stopped leaves finished shards in DIR.work, and the same command goes on
    there; standard input and pipes begin anew.

    \b
    Examples:
      engram tokenize books/ --vocab v4.vocab.parquet -o tokens
      engram tokenize 'dump/*.jsonl.zst' --field content --tokenizer deepseek-v4 --workers 8 -o tokens
      engram tokenize requests.jsonl --request-field id --vocab v4.vocab.parquet -o tokens --json | jq .n_tokens
      engram tokenize train.bin --dtype uint16 --document-end 0 --tokenizer ./my-model -o tokens
    """
    from engram_tables.corpus.tokens.tokenize_corpus import plan_tokenize, run_tokenize

    if (vocab is None) == (tokenizer is None):
        raise typer.BadParameter("give exactly one of --vocab and --tokenizer")
    options = reading.options()
    vocabulary = _vocabulary(vocab, tokenizer)
    plan = plan_tokenize(
        corpus,
        vocabulary=vocabulary,
        output=output,
        also_read=() if vocab is None else (vocab,),
        **reading.files(),
        options=options,
        force=force,
    )
    for reason, n_entries in sorted(plan.corpus.skipped.items()):
        say(f"left out: {n_entries:,} directory entries, {reason.value}")
    if dry_run:
        _show_plan(plan, json_lines=json_lines)
        return
    with progress("tokenising", "B") as hook:
        done = run_tokenize(plan, workers=workers, force=force, restart=restart, progress=hook)
    _narrate(done)
    record = _record(plan, done)
    if json_lines:
        emit(record)
    else:
        _show(record)


def _vocabulary(vocab: Path | None, tokenizer: str | None) -> Vocabulary:
    from engram_tables.address.vocabulary import Rule, build_vocabulary, load_vocabulary

    if vocab is not None:
        return load_vocabulary(vocab)
    assert tokenizer is not None
    return build_vocabulary(tokenizer, rule=Rule.IDENTITY)


def _narrate(done: TokenizedCorpus) -> None:
    if done.n_reused:
        say(f"{done.n_reused:,} shards were finished by an earlier run and are used as they were")
    if done.outcome.replaced_files:
        say(
            f"{done.outcome.replaced_bytes:,} bytes in {done.outcome.replaced_files:,} files are not UTF-8 and became "
            "U+FFFD"
        )
    bad_lines = done.outcome.bad_lines
    for line in bad_lines[:_SHOWN_BAD_LINES]:
        say(f"left out: {line}")
    if len(bad_lines) > _SHOWN_BAD_LINES:
        say(f"left out: {len(bad_lines) - _SHOWN_BAD_LINES:,} more malformed lines")


def _skipped(plan: TokenizePlan) -> dict[str, int]:
    return {reason.name.lower(): n_entries for reason, n_entries in sorted(plan.corpus.skipped.items())}


def _show_plan(plan: TokenizePlan, *, json_lines: bool) -> None:
    if json_lines:
        emit(
            {
                "schema": "engram.tokenize-plan/1",
                "output": str(plan.output),
                "work": str(plan.work),
                "work_exists": plan.work.exists(),
                "resumable": plan.is_resumable,
                "n_files": len(plan.corpus.files),
                "corpus_bytes": plan.corpus.total_bytes,
                "n_shards": len(plan.pieces),
                "skipped": _skipped(plan),
                "tokenizer_sha256": plan.vocabulary.tokenizer_sha256,
                "token_size": plan.token_size,
                "dtype": plan.dtype,
                "written_bytes": None,
            }
        )
        return
    show(f"would read  {len(plan.corpus.files):,} files, {format_bytes(plan.corpus.total_bytes)}")
    show(
        f"would write {plan.output}: tokens.json and {len(plan.pieces):,} shards of {plan.dtype}, by way of {plan.work}"
    )
    if plan.work.exists():
        show(f"            {plan.work} is there: a run of the same plan goes on with its finished shards")
    show("            bytes unknown until the text is tokenised")


def _record(plan: TokenizePlan, done: TokenizedCorpus) -> dict[str, Any]:
    manifest = done.manifest
    files = [told[kind] for told in manifest["shards"] for kind in ("ids", "starts", "names") if told[kind]]
    return {
        "schema": "engram.tokenize/1",
        "output": str(plan.output),
        "manifest_sha256": manifest["manifest_sha256"],
        "tokenizer_sha256": manifest["tokenizer_sha256"],
        "token_size": manifest["token_size"],
        "dtype": manifest["dtype"],
        "n_documents": manifest["n_documents"],
        "n_tokens": manifest["n_tokens"],
        "n_dead": manifest["n_dead"],
        "n_shards": len(manifest["shards"]),
        "n_shards_reused": done.n_reused,
        "n_workers": done.n_workers,
        "encoder": None if done.encoder is None else done.encoder._asdict(),
        "corpus": manifest["corpus"],
        "skipped": _skipped(plan),
        "bad_lines": [line._asdict() for line in done.outcome.bad_lines[:_SHOWN_BAD_LINES]],
        "written_bytes": sum(file["file_bytes"] for file in files),
    }


def _show(record: dict[str, Any]) -> None:
    show(f"tokens      {record['n_tokens']:,} in {record['n_documents']:,} documents, {record['n_dead']:,} dead")
    show(f"read        {format_bytes(record['corpus']['read_bytes'])}")
    show(f"stored      {record['dtype']}, {record['n_shards']:,} shards, {format_bytes(record['written_bytes'])}")
    show(f"tokenizer   {record['token_size']:,} ids, SHA-256 {record['tokenizer_sha256']}")
    show(f"manifest    SHA-256 {record['manifest_sha256']}")
    show(f"written: {record['output']}")
