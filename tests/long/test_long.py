"""What takes longer than `make test` may: millions of adversarial values, kills at random moments, a whole corpus."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import numpy as np
import pytest

from engram_tables import load_spec, open_table
from engram_tables.address.hashing import hash_ngrams
from engram_tables.address.recipes import make_recipe
from engram_tables.address.vocabulary import Vocabulary
from engram_tables.corpus.counts.counting import count_ngrams
from engram_tables.corpus.reading.readers import find_documents
from engram_tables.corpus.tokens.token_stream import tokenize_documents
from engram_tables.storage.checking.verify import verify_table

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

ENGRAM = [sys.executable, "-c", "from engram_cli.main import main; main()"]


@pytest.mark.parametrize("layer_id", [1, 14])
@pytest.mark.parametrize("order", [2, 3, 4])
def test_twelve_million_ngrams_reduce_exactly(layer_id: int, order: int) -> None:
    """Eight columns of 1.5 million n-grams, the largest ids included, against NumPy's division."""
    spec = load_spec("deepseek-v4.1-flash")
    rng = np.random.default_rng([layer_id, order])
    ngrams = rng.integers(0, spec.canonical_size, (1_500_000, order), dtype=np.uint32)
    ngrams[:1000] = spec.canonical_size - 1 - rng.integers(0, 2, (1000, order), dtype=np.uint32)
    keys, rows = hash_ngrams(spec, layer_id, order, ngrams)
    layer = spec.layer(layer_id)
    mix = np.zeros(len(ngrams), dtype=np.uint64)
    for back, multiplier in enumerate(layer.multipliers[:order]):
        mix ^= ngrams[:, order - 1 - back].astype(np.uint64) * np.uint64(multiplier)
    np.testing.assert_array_equal(keys, mix)
    first = 8 * (order - 2)
    for head, modulus in enumerate(layer.moduli[order - 2]):
        local = (mix % np.uint64(modulus)).astype(np.int64)
        np.testing.assert_array_equal(rows[:, head], local + layer.offsets[first + head])


def test_a_build_killed_at_any_moment_leaves_nothing_or_the_whole(v4_vocabulary: Vocabulary, tmp_path: Path) -> None:
    recipe = make_recipe(
        v4_vocabulary,
        name="killed",
        orders=(2, 3),
        heads=4,
        rows_per_head=[20_000],
        layer_ids=(1,),
        row_width=256,
        pad_token=2,
    )
    (tmp_path / "spec.json").write_text(json.dumps(recipe.resolve().to_json()), encoding="utf-8")
    command = [*ENGRAM, "build-table", "--spec", "spec.json", "--codec", "f32", "-o", "table"]
    started = time.monotonic()
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    whole_s = time.monotonic() - started
    digest = json.loads((tmp_path / "table" / "engram.json").read_bytes())["manifest_sha256"]
    moments = random.Random(0)
    for _ in range(20):
        subprocess.run(["rm", "-rf", str(tmp_path / "table")], check=True)
        with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as child:
            time.sleep(moments.uniform(0.2, 1.1) * whole_s)
            child.send_signal(signal.SIGKILL)
        if (tmp_path / "table").exists():
            assert verify_table(tmp_path / "table").is_whole
            assert json.loads((tmp_path / "table" / "engram.json").read_bytes())["manifest_sha256"] == digest
    # What killed builds left aside is in nobody's way.
    subprocess.run([*command, "--force"], cwd=tmp_path, check=True, capture_output=True)
    with open_table(tmp_path / "table") as table:
        assert table.fetch_rows(1, [0]).shape == (1, 1024)


def test_counts_of_the_standard_library_equal_an_independent_count(v4_vocabulary: Vocabulary) -> None:
    library = sysconfig.get_path("stdlib")
    corpus = find_documents([library], glob="*.py", exclude=("*-packages",), decode_errors="replace")
    stream = tokenize_documents(v4_vocabulary.tokenizer(), corpus.documents())
    ids = v4_vocabulary.canonical(stream.ids)
    counts = count_ngrams(ids, stream.document_starts, orders=(2, 3), canonical_size=v4_vocabulary.canonical_size)
    for order in (2, 3):
        starts = np.ones(len(ids), dtype=bool)
        for back in range(1, order):
            ends = stream.document_starts[1:] - back
            starts[ends[ends >= stream.document_starts[:-1]]] = False
        packed = np.zeros(int(starts.sum()), dtype=np.uint64)
        for place in range(order):
            packed = packed << np.uint64(17) | ids[np.flatnonzero(starts) + place].astype(np.uint64)
        distinct, occurrences = np.unique(packed, return_counts=True)
        found = np.zeros(counts[order].n_distinct, dtype=np.uint64)
        for column in counts[order].columns:
            found = found << np.uint64(17) | column.astype(np.uint64)
        np.testing.assert_array_equal(found, distinct)
        np.testing.assert_array_equal(counts[order].counts, occurrences.astype(np.uint64))
