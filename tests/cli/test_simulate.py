"""`engram simulate`: its curves are those of plain caches, its files are taken by others, and it refuses in words."""

from __future__ import annotations

import json
from collections import Counter, OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engram_tables.address.spec import Addresses
from engram_tables.corpus.counts.counts_store import open_counts
from engram_tables.corpus.traffic.trace import open_trace
from engram_tables.fetch.table import open_table
from engram_tables.fetch.tiers.budget import MemoryTier, TierPlan
from engram_tables.fetch.tiers.hot_list import read_hot_list
from engram_tables.storage.bundles.choosing import ChosenIndex, choose

from .conftest import Engram

ROW_BYTES = 128
TEXTS = {
    "a.txt": "the cat sat. The cat sat on the mat, and the Cat sat again. " * 3,
    "b.txt": "a dog ran; the cat sat while a dog ran about the dog and the mat. " * 2,
    "c.txt": "nothing of the sort: cats sit, dogs run, and THE cat sat there. " * 2,
}


@pytest.fixture(scope="module")
def home(tiny_table: Path, tiny_vocab_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Texts, their trace and counts, over the tiny table's spec."""
    from .conftest import _run

    place = tmp_path_factory.mktemp("simulate")
    (place / "texts").mkdir()
    for name, text in TEXTS.items():
        (place / "texts" / name).write_text(text)
    spec = tiny_table.parent / "spec.json"
    for arguments in (
        ("trace", place / "texts", "--spec", spec, "--vocab", tiny_vocab_file, "-o", place / "trace"),
        ("count", place / "texts", "--vocab", tiny_vocab_file, "--orders", "2,3,4", "-o", place / "counts"),
    ):
        ran = _run(*arguments)
        assert ran.code == 0, ran.err
    return place


def simulated(engram: Engram, *arguments: object) -> dict[str, Any]:
    ran = engram("simulate", *arguments, "--row-bytes", ROW_BYTES, "--json")
    assert ran.code == 0, ran.err
    (record,) = ran.records()
    assert record["schema"] == "engram.simulate/1"
    return record


def curve(record: dict[str, Any], policy: str, state: str, **others: Any) -> dict[str, Any]:
    found = [c for c in record["curves"] if (c["policy"], c["state"]) == (policy, state)
             and all(c[key] == value for key, value in others.items())]  # fmt: skip
    assert len(found) == 1
    return found[0]


def plain_lru(steps: list[list[int]], n_items: int, first_steady: int) -> tuple[list[int], list[int], list[int]]:
    """Hits and accesses of the cold and the steady part, and the steady steps' misses."""
    cache: OrderedDict[int, None] = OrderedDict()
    hits, accesses, misses = [0, 0], [0, 0], []
    for nth, step in enumerate(steps):
        items = list(dict.fromkeys(step))
        here = [item in cache for item in items]
        hits[nth >= first_steady] += sum(here)
        accesses[nth >= first_steady] += len(items)
        if nth >= first_steady:
            misses.append(len(items) - sum(here))
        for item in items:
            cache[item] = None
            cache.move_to_end(item)
        while len(cache) > n_items:
            cache.popitem(last=False)
    return hits, accesses, misses


@pytest.mark.parametrize("batch", [1, 3])
def test_lru_is_that_of_a_plain_cache(engram: Engram, home: Path, batch: int) -> None:
    record = simulated(engram, home / "trace", "--sizes", "1280,6400,25600", "--policy", "lru,belady",
                       "--batch", batch)  # fmt: skip
    with open_trace(home / "trace") as trace:
        rows = trace.rows(0, trace.n_tokens)
        first = np.cumsum([0, *(layer.n_rows for layer in trace.spec.layers)])[:-1]
        items = (rows + first[None, :, None]).reshape(len(rows), -1).tolist()
    steps = [[one for of in items[at : at + batch] for one in of] for at in range(0, len(items), batch)]
    (run,) = record["runs"]
    assert (run["n_steps"], run["sample_rate"]) == (len(steps), 1.0)
    assert run["n_distinct_cold"] == len({item for step in steps[: run["first_steady_step"]] for item in step})
    for at, size in enumerate((10, 50, 200)):
        hits, accesses, misses = plain_lru(steps, size, run["first_steady_step"])
        for nth, state in enumerate(("cold", "steady")):
            found = curve(record, "lru", state)
            assert found["n_accesses"] == accesses[nth]
            point = found["points"][at]
            assert point["hit_ratio"] == pytest.approx(hits[nth] / accesses[nth])
            assert point["error"] is None
        bound = [curve(record, "belady", state) for state in ("cold", "steady")]
        assert sum(hits) <= round(sum(of["points"][at]["hit_ratio"] * of["n_accesses"] for of in bound))
        # The last step has what is left of the text.
        n_tokens = [min(batch, len(items) - at) for at in range(0, len(items), batch)][run["first_steady_step"] :]
        of_tokens = sorted(missed / n for missed, n in zip(misses, n_tokens, strict=True))
        assert point["misses_a_token_p50"] == of_tokens[-(-len(misses) // 2) - 1]
        assert point["is_full"] == (run["n_distinct_cold"] >= size)
    by_class = curve(record, "lru", "steady")["classes"]
    assert [(of["layer_id"], of["order"]) for of in by_class] == [(1, 2), (1, 3), (1, 4), (3, 2), (3, 3), (3, 4)]


def test_a_trace_and_its_corpus_agree(engram: Engram, home: Path, tiny_table: Path, tiny_vocab_file: Path) -> None:
    options = ("--sizes", "8kB,16kB", "--streams", "1,2", "--unit", "row,page", "--layout", "aligned-512")
    of_trace = simulated(engram, home / "trace", *options)
    of_text = simulated(engram, home / "texts", "--spec", tiny_table.parent / "spec.json", "--vocab", tiny_vocab_file,
                        *options)  # fmt: skip
    for part in ("curves", "runs", "unique_rows", "representative", "left_out", "fingerprint"):
        assert of_trace[part] == of_text[part]
    assert (of_trace["corpus"]["kind"], of_text["corpus"]["kind"]) == ("trace", "tokens")
    assert len(of_trace["runs"]) == 4
    assert {(run["unit"], run["item_bytes"]) for run in of_trace["runs"]} == {("row", ROW_BYTES), ("page", 4096)}
    assert [entry["reason"] for entry in of_trace["left_out"]] == ["the tiered reader keeps rows, not pages"] * 2
    assert of_trace["representative"]["verdict"] == "too-short"
    assert {c["policy"] for c in of_trace["curves"]} == {"lru", "lru-16", "static", "tiered", "s3-fifo", "belady"}


def test_tiered_is_what_the_reader_counts(engram: Engram, home: Path, tiny_table: Path) -> None:
    hot = home / "hot-for-tiers.parquet"
    simulated(engram, home / "trace", "--sizes", "1kB", "--policy", "lru", "--hot-list", hot, "--hot-bytes", "4kB")
    budget = 12_000
    record = simulated(engram, home / "trace", "--sizes", budget, "--policy", "tiered", "--preload", hot)
    with open_trace(home / "trace") as trace:
        rows, keys = trace.rows(0, trace.n_tokens), trace.keys(0, trace.n_tokens)
    plan = TierPlan(tiers=(MemoryTier(budget_bytes=budget),), hot_list=hot, behind="pread")
    with open_table(tiny_table) as table:
        tier = table.add_tiers(plan)
        for at in range(len(rows)):
            table.fetch(Addresses(rows=rows[at : at + 1], keys=keys[at : at + 1]), threads=1)
        counts = tier.counts()
    n_hits = counts.hits_pinned + counts.hits_cached
    curves = [curve(record, "tiered", state) for state in ("cold", "steady")]
    predicted = sum(c["points"][0]["hit_ratio"] * c["n_accesses"] for c in curves)
    assert n_hits + counts.misses == sum(c["n_accesses"] for c in curves)
    assert predicted == pytest.approx(n_hits)


def test_the_hot_list_has_the_rows_of_most_lookups(engram: Engram, home: Path) -> None:
    hot = home / "hot.parquet"
    record = simulated(engram, home / "trace", "--sizes", "8kB", "--policy", "static", "--hot-list", hot,
                       "--hot-bytes", "1280")  # fmt: skip
    assert record["hot_list"] == {"path": str(hot), "n_rows": 10, "row_bytes": 1280}
    found = read_hot_list(hot)
    with open_trace(home / "trace") as trace:
        rows = trace.rows(0, trace.n_tokens)
        counted = Counter(
            (layer.layer_id, row)
            for nth, layer in enumerate(trace.spec.layers)
            for row in rows[:, nth].reshape(-1).tolist()
        )
    assert found.weights.tolist() == sorted(counted.values(), reverse=True)[:10]
    with_list = simulated(engram, home / "trace", "--sizes", "1280", "--policy", "static", "--preload", hot)
    steady = curve(with_list, "static", "steady")
    assert steady["basis"] == "the hot list"
    held = set(zip(found.layer_ids.tolist(), found.rows.tolist(), strict=True))
    start = with_list["runs"][0]["first_steady_step"]
    looked_up = [[(layer.layer_id, row) for nth, layer in enumerate(trace.spec.layers) for row in set(of[nth].tolist())]
                 for of in rows[start:]]  # fmt: skip
    hits = sum(one in held for step in looked_up for one in step)
    assert steady["points"][0]["hit_ratio"] == pytest.approx(hits / sum(map(len, looked_up)))
    assert engram("simulate", home / "trace", "--row-bytes", ROW_BYTES, "--hot-list", hot).code == 3


def test_bundles_are_found_as_the_counts_say(engram: Engram, home: Path) -> None:
    record = simulated(engram, home / "trace", "--sizes", "8kB", "--policy", "lru", "--bundles", home / "counts",
                       "--bundle-budgets", "6kB,1MB")  # fmt: skip
    sweep = record["bundles"]
    assert [point["budget_bytes"] for point in sweep["points"]] == [0, 6000, 10**6]
    none, some, all_of_them = sweep["points"]
    assert (none["reads_a_token"], none["n_bundles"]) == (12.0, 0)
    assert some["n_bundles"] == 6000 // (2 * (2 * ROW_BYTES + 24))
    with open_counts(home / "counts") as counts:
        for of in all_of_them["found"]:
            seen = np.concatenate(list(counts.counts_of(of["order"]))).astype(int)
            # The counted text is the text itself: what is not found was seen once. Positions at the beginning of a
            # document look up n-grams with fills, which are counted too or never found.
            assert of["share"] <= 1
            assert of["share"] >= (seen[seen > 1].sum() - 3 * of["order"]) / sweep["n_tokens"]
    shares = [of["share"] for of in all_of_them["found"]]
    assert all_of_them["reads_a_token"] == pytest.approx(sum(2 * (share + (1 - share) * 2) for share in shares))
    assert none["reads_a_token"] > some["reads_a_token"] > all_of_them["reads_a_token"] >= 6
    assert none["page_bytes_a_token"] == 12 * 4096


def test_a_sample_says_how_far_off_it_may_be(engram: Engram, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from engram_tables.measure.simulate import report

    exact = simulated(engram, home / "trace", "--sizes", "16kB", "--policy", "lru")
    monkeypatch.setattr(report, "_LEAST_BYTES", 1)
    with open_trace(home / "trace") as trace:
        n_accesses = trace.n_tokens * 12
        memory = n_accesses * report.ACCESS_BYTES // 2 + report.SCHEDULE_BYTES * trace.n_tokens
    record = simulated(engram, home / "trace", "--sizes", "16kB", "--policy", "lru", "--memory", memory)
    assert record["runs"][0]["sample_rate"] == 0.5
    point = curve(record, "lru", "steady")["points"][0]
    assert point["error"] > 0
    assert point["misses_a_token_p99"] is None
    there = curve(exact, "lru", "steady")["points"][0]["hit_ratio"]
    assert abs(point["hit_ratio"] - there) < 0.3
    ran = engram("simulate", home / "trace", "--row-bytes", ROW_BYTES, "--sizes", "16kB", "--memory", memory)
    assert "a sample of 0.5 of the rows" in ran.out
    assert "±" in ran.out


def test_what_people_see(engram: Engram, home: Path) -> None:
    pytest.importorskip("matplotlib")
    ran = engram("simulate", home / "trace", "--row-bytes", ROW_BYTES, "--sizes", "8kB,16kB", "--chunk", "8",
                 "--streams", "2", "--record", "r.json", "--plot", "p.svg", "--bundles", home / "counts")  # fmt: skip
    assert ran.code == 0, ran.err
    for words in ("too short to tell", "By row, 2 streams, chunks of 8 tokens", "hit ratio, cold", "belady",
                  "misses a token with lru", "reads a token", "behind a cache"):  # fmt: skip
        assert words in ran.out
    assert json.loads(Path("r.json").read_text())["runs"][0]["is_prefill"] is True
    assert "8 tokens" in Path("p.svg").read_text() or "chunks of 8" in Path("p.svg").read_text()
    again = engram("simulate", home / "trace", "--row-bytes", ROW_BYTES, "--record", "r.json")
    assert again.code == 3
    assert "r.json" in again.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--sizes", "64"), "expected 128 or more for one row"),
        (("--policy", "random"), "--policy: found 'random'"),
        (("--unit", "line"), "--unit: found 'line'"),
        (("--unit", "page", "--layout", "planar"), "split"),
        (("--streams", "0"), "streams: found 0"),
        (("--streams", "x"), "--streams: found 'x'"),
        (("--warm-up", "1"), "warm-up: found 1.0"),
        (("--plot", "x.gif"), "'.gif'"),
        (("--bundles", "counts-missing"), "counts-missing"),
        (("--preset", "engram-demo"), "traced with the addressing"),
    ],
)
def test_what_is_refused(engram: Engram, home: Path, arguments: tuple[str, ...], words: str) -> None:
    ran = engram("simulate", home / "trace", "--row-bytes", ROW_BYTES, *arguments)
    assert ran.code == 3, ran.out
    assert words in ran.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--layout", "page"), "goes only with --unit page"),
        (("--chunk", "8", "--batch", "2"), "give --batch or --chunk"),
        (("--record", "x.json", "--hot-list", "x.json"), "one file for two"),
        (("--codec", "f32"), "give --codec or --row-bytes"),
        (("--spec", "a.json", "--preset", "engram-demo"), "exactly one of"),
        (("--eos", "1"), "--eos"),
    ],
)
def test_a_command_line_that_contradicts_itself_is_wrong_usage(
    engram: Engram, home: Path, arguments: tuple[str, ...], words: str
) -> None:
    ran = engram("simulate", home / "trace", "--row-bytes", ROW_BYTES, *arguments)
    assert ran.code == 2, ran.out
    assert words in " ".join(ran.err.replace("│", " ").split())


def test_a_codec_says_how_long_a_row_is(engram: Engram, home: Path) -> None:
    ran = engram("simulate", home / "trace", "--codec", "f32", "--sizes", "8kB", "--policy", "lru", "--json")
    (record,) = ran.records()
    assert (record["row_bytes"], record["codec"], record["row_bytes_source"]) == (ROW_BYTES, "f32", "codec")
    given = simulated(engram, home / "trace", "--sizes", "8kB", "--policy", "lru")
    assert record["curves"] == given["curves"]


def ngram_misses(steps: list[list[int]], n_items: int, heads: int) -> list[list[int]]:
    """Of each step, a token each, the rows that an LRU cache misses, by its layers' and orders' n-grams."""
    cache: OrderedDict[int, None] = OrderedDict()
    found = []
    for step in steps:
        found.append([sum(item not in cache for item in step[at : at + heads]) for at in range(0, len(step), heads)])
        for item in step:
            cache[item] = None
            cache.move_to_end(item)
        while len(cache) > n_items:
            cache.popitem(last=False)
    return found


def test_reads_left_by_cache_and_bundles_are_bounded_by_what_is_counted(engram: Engram, home: Path) -> None:
    """Every n-gram of a token is asked for by itself, as the reader does: the cache first, for each of its rows."""
    budgets, sizes = (6000, 20_000, 10**6), (4480, 6400, 25_600)
    record = simulated(engram, home / "trace", "--sizes", ",".join(map(str, sizes)), "--policy", "lru,tiered",
                       "--bundles", home / "counts", "--bundle-budgets", ",".join(map(str, budgets)),
                       "--unit", "row,page")  # fmt: skip
    plain = simulated(engram, home / "trace", "--sizes", ",".join(map(str, sizes)), "--policy", "lru,tiered")
    with open_trace(home / "trace") as trace:
        spec, keys = trace.spec, trace.keys(0, trace.n_tokens)
        rows = trace.rows(0, trace.n_tokens)
        first = np.cumsum([0, *(layer.n_rows for layer in spec.layers)])[:-1]
    items = (rows + first[None, :, None]).reshape(len(rows), -1).tolist()
    with open_counts(home / "counts") as counts:
        chosen = choose(counts, spec, row_bytes=ROW_BYTES, budget_bytes=budgets[-1])
    ranks = ChosenIndex(chosen, spec, layer_id=spec.layer_ids[0]).ranks(np.ascontiguousarray(keys[:, 0]))
    begin = record["runs"][0]["first_steady_step"]
    for size in sizes:
        misses = np.array(ngram_misses(items, size // ROW_BYTES, spec.heads[0]))
        for state, part in (("cold", slice(begin)), ("steady", slice(begin, None))):
            (point,) = [p for p in curve(record, "lru", state, unit="row")["points"] if p["cache_bytes"] == size]
            assert [of["budget_bytes"] for of in point["bundled"]] == [0, *budgets]
            for of in point["bundled"]:
                limit = chosen.n_within(of["budget_bytes"])
                has_bundle = np.tile((ranks >= 0) & (ranks < limit), (1, len(spec.layers)))
                reads = np.where(has_bundle, np.minimum(misses, 1), misses)[part].sum(axis=1).mean()
                assert of["reads_a_token_least"] <= reads + 1e-9
                assert of["reads_a_token_most"] >= reads - 1e-9
                if limit == 0:
                    assert of["reads_a_token_least"] == of["reads_a_token_most"] == pytest.approx(reads)
    # Hits are those without bundles: the cache is asked first.
    for of in plain["curves"]:
        there = curve(record, of["policy"], of["state"], unit="row")
        assert there["classes"] == of["classes"]
        assert [p["hit_ratio"] for p in there["points"]] == [p["hit_ratio"] for p in of["points"]]
        assert all(p["bundled"] is None for p in of["points"])
    assert all(p["bundled"] is None for of in record["curves"] if of["unit"] == "page" for p in of["points"])


def test_a_corpus_needs_a_spec_and_a_row_length(engram: Engram, home: Path, tiny_vocab_file: Path) -> None:
    ran = engram("simulate", home / "texts", "--vocab", tiny_vocab_file)
    assert (ran.code, "--preset" in ran.err) == (3, True)
    ran = engram("simulate", home / "trace")
    assert (ran.code, "--row-bytes" in ran.err) == (3, True)
    ran = engram("simulate", home / "trace", home / "texts")
    assert (ran.code, "found a trace among 2 paths" in ran.err) == (3, True)


@pytest.mark.parametrize("options", [("--streams", 500), ("--batch", 100_000), ("--chunk", 100_000)])
def test_misses_are_of_the_tokens_that_a_step_has(engram: Engram, home: Path, options: tuple[str, int]) -> None:
    """More streams than documents, and steps longer than the text: a step's misses are over its own tokens."""
    record = simulated(engram, home / "trace", "--sizes", "1280,20MB", "--policy", "lru,tiered", *options)
    with open_trace(home / "trace") as trace:
        rows, starts = trace.rows(0, trace.n_tokens), np.asarray(trace.document_starts)
    if options[0] == "--streams":
        # The first token of each document, none of which was there before.
        n_tokens = int((np.diff(starts) > 0).sum())
        first = starts[:-1][np.diff(starts) > 0]
    else:
        n_tokens, first = len(rows), np.arange(len(rows))
    missed = sum(np.unique(rows[first, layer]).size for layer in range(rows.shape[1]))
    cold = curve(record, "lru", "cold")
    assert cold["tokens_a_step"] == options[1]
    if options[0] == "--streams":
        assert max(point["misses_a_token_p99"] for point in cold["points"]) >= missed / n_tokens > 1
    else:
        assert {point["misses_a_token_p50"] for point in cold["points"]} == {missed / n_tokens}


def test_a_size_that_a_sample_cannot_stand_for_is_refused_before_the_text_is_read(
    engram: Engram, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from engram_tables.measure.simulate import report

    monkeypatch.setattr(report, "_LEAST_BYTES", 1)
    ran = engram("simulate", home / "trace", "--row-bytes", ROW_BYTES, "--sizes", "1kB,16MB", "--memory", "20kB")
    assert ran.code == 3
    assert "sizes: found 1000 bytes" in ran.err
    assert "raise --memory" in ran.err
    assert "looking up" not in ran.err


@pytest.mark.parametrize("unit", ["row", "page"])
def test_a_trace_with_rows_that_its_spec_has_not_is_damaged(
    engram: Engram, home: Path, tiny_table: Path, tiny_vocab_file: Path, tmp_path: Path, unit: str
) -> None:
    spec = tiny_table.parent / "spec.json"
    made = engram("trace", home / "texts", "--spec", spec, "--vocab", tiny_vocab_file, "--store", "rows",
                  "-o", tmp_path / "trace")  # fmt: skip
    assert made.code == 0, made.err
    (file,) = (tmp_path / "trace").glob("*.rows.npy")
    rows = np.load(file)
    rows[3, 1, 0] = np.iinfo(rows.dtype).max
    np.save(file, rows)
    ran = engram("simulate", tmp_path / "trace", "--row-bytes", ROW_BYTES, "--sizes", "8kB", "--unit", unit)
    assert ran.code == 3
    assert "of layer 3" in ran.err
    assert "damaged" in ran.err
