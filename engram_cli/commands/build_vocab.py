"""`engram build-vocab`: a tokenizer's vocabulary to canonical ids."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from engram_cli.console import check_found, emit, say, show, show_table
from engram_cli.options import Force, JsonFlag

if TYPE_CHECKING:
    from engram_tables.address.vocabulary import Vocabulary


def build_vocab(
    tokenizer: Annotated[
        str,
        typer.Argument(help="A tokenizer.json, a directory that holds one, or deepseek-v4 / deepseek-v3."),
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Vocabulary file to write.")
    ] = None,
    rule: Annotated[
        str, typer.Option("--rule", help="deepseek (fold and renumber), min-id (fold, keep ids) or identity.")
    ] = "deepseek",
    groups: Annotated[int, typer.Option("--groups", min=0, help="How many of the largest merged groups to show.")] = 20,
    expect_size: Annotated[
        int | None,
        typer.Option("--expect-size", help="Fail with exit code 6 unless there are this many canonical ids."),
    ] = None,
    expect_sha256: Annotated[
        str | None,
        typer.Option("--expect-sha256", help="Fail with exit code 6 unless the map has this digest (int32 or int64)."),
    ] = None,
    force: Force = False,
    json: JsonFlag = False,
) -> None:
    """Compress a tokenizer's vocabulary into canonical ids.

    Tokens that differ in case, accents or white space alone share one canonical id under the DeepSeek rule. The file
    written is Parquet (token_id, token, canonical_id) with rule, digests and the tokenizer itself in its metadata;
    nothing is written without -o, or when an expectation fails.

    \b
    Examples:
      engram build-vocab deepseek-v4 -o v4.vocab.parquet
      engram build-vocab ./my-model/tokenizer.json --rule identity -o my.vocab.parquet
      engram build-vocab deepseek-v4 --expect-size 99092 --groups 5
    """
    from engram_tables.address.vocabulary import Rule, build_vocabulary
    from engram_tables.files import refuse_existing

    if rule not in list(Rule):
        raise typer.BadParameter(f"{rule!r}; choose {', '.join(Rule)}", param_hint="--rule")
    if output is not None:
        refuse_existing(output, force=force)
    vocabulary = build_vocabulary(tokenizer, rule=rule)
    wrong = _contradiction(vocabulary, expect_size, expect_sha256)
    if output is not None and wrong is None:
        vocabulary.save(output, force=force)
        say(f"wrote {output}, {output.stat().st_size:,} bytes")
    largest = vocabulary.largest_groups(groups)
    if json:
        members = [{"canonical_id": g.canonical_id, "form": g.form, "token_ids": g.token_ids} for g in largest]
        emit(
            {
                **vocabulary.header(),
                "reduction": 1 - vocabulary.n_classes / vocabulary.token_count,
                "groups": members,
            }
        )
    else:
        show(f"tokenizer       {vocabulary.source}, SHA-256 {vocabulary.tokenizer_sha256}")
        show(f"rule            {vocabulary.rule}")
        show(f"token ids       {vocabulary.token_count:,}")
        show(f"canonical ids   {vocabulary.n_classes:,}")
        show(f"reduction       {1 - vocabulary.n_classes / vocabulary.token_count:.4%}")
        show(f"map SHA-256     {vocabulary.map_sha256}  (little-endian int32)")
        show(f"                {vocabulary.map_sha256_i64}  (little-endian int64)")
        if largest:
            rows = [
                (
                    repr(g.form),
                    g.canonical_id,
                    len(g.token_ids),
                    " ".join(repr(vocabulary.text(t)) for t in g.token_ids[:6]),
                )
                for g in largest
            ]
            show_table("Largest merged groups", ("form", "canonical id", "tokens", "some of them"), rows)
    if wrong is not None:
        check_found(f"{tokenizer}: {wrong}; nothing is written")


def _contradiction(vocabulary: Vocabulary, expect_size: int | None, expect_sha256: str | None) -> str | None:
    """What differs from what was expected."""
    if expect_size is not None and vocabulary.n_classes != expect_size:
        return f"{vocabulary.n_classes:,} canonical ids, expected {expect_size:,}"
    digests = (vocabulary.map_sha256, vocabulary.map_sha256_i64)
    if expect_sha256 is not None and expect_sha256.lower() not in digests:
        return f"map of SHA-256 {digests[0]} (int32) and {digests[1]} (int64), expected {expect_sha256}"
    return None
