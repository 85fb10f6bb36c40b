"""Schedules and accesses equal what a few plain loops say, and the units number pages as the files do."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "corpus"))
from traffic_specs import Tokens, small_specs

from engram_tables.address import reference
from engram_tables.errors import InvalidInput
from engram_tables.measure.caches.sampling import sampled
from engram_tables.measure.simulate import streams
from engram_tables.measure.simulate.streams import (
    TokenLookups,
    Turns,
    accesses_of,
    classes_of,
    schedule,
)
from engram_tables.measure.simulate.units import PAGE, ROW, row_bytes_of, unit_of

SPECS = small_specs()
DOCUMENTS = st.lists(st.lists(st.integers(-1, 11), max_size=9), max_size=9)


def plain_steps(documents: list[list[int]], turns: Turns) -> list[list[tuple[int, int]]]:
    """Steps of (document, position), by the words of `streams` alone."""
    queues: list[list[tuple[int, int]]] = [[] for _ in range(turns.n_streams)]
    for number, document in enumerate(documents):
        free = min(range(turns.n_streams), key=lambda stream: len(queues[stream]))
        queues[free] += [(number, at) for at, token in enumerate(document) if token >= 0]
    steps = []
    while any(queues):
        taken = []
        for queue in queues:
            taken.append(queue[: turns.tokens_a_turn])
            del queue[: turns.tokens_a_turn]
        steps += [turn for turn in taken if turn] if turns.is_prefill else [[one for turn in taken for one in turn]]
    return steps


@given(
    documents=DOCUMENTS,
    n_streams=st.integers(1, 4),
    tokens_a_turn=st.integers(1, 5),
    is_prefill=st.booleans(),
    spec_name=st.sampled_from(["xor", "xor-rules", "shared", "polynomial", "wide", "identity"]),
    chunk=st.sampled_from([3, 1 << 16]),
)
@settings(max_examples=80, deadline=None)
def test_accesses_are_those_of_plain_loops(documents, n_streams, tokens_a_turn, is_prefill, spec_name, chunk):
    spec = SPECS[spec_name]
    documents = [[min(token, spec.canonical_size - 1) for token in document] for document in documents]
    if spec_name == "identity":
        documents = [[min(token, 7) for token in document] for document in documents]
    turns = Turns(n_streams=n_streams, tokens_a_turn=tokens_a_turn, is_prefill=is_prefill)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streams, "CHUNK_TOKENS", chunk)
        lookups = TokenLookups(spec, Tokens(documents), None, threads=2)
        found = accesses_of(lookups, schedule(lookups, turns), unit_of(ROW, spec, row_bytes_of(spec, 264)), threads=2)
    of_column, named = classes_of(spec)
    first = np.cumsum([0, *(layer.n_rows for layer in spec.layers)])
    by_layer = [
        [reference.address(spec, layer, document)[0] if document else [] for document in documents]
        for layer in spec.layers
    ]
    items, classes, starts = [], [], [0]
    for step in plain_steps(documents, turns):
        for number, at in step:
            for layer in range(len(spec.layers)):
                for column in range(spec.n_columns):
                    items.append(int(first[layer]) + by_layer[layer][number][at][column])
                    classes.append(int(of_column[layer, column]))
        starts.append(len(items))
    assert found.items.tolist() == items
    assert found.classes.tolist() == classes
    assert found.step_starts.tolist() == starts
    assert (found.n_items, found.n_classes) == (int(first[-1]), len(named))


@given(documents=DOCUMENTS, layout=st.sampled_from(["packed", "page", "aligned-512", "aligned-1024"]),
       row_bytes=st.sampled_from([8, 264, 512, 1000, 4096, 5000]))  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_pages_are_those_of_the_bytes(documents, layout, row_bytes):
    spec = SPECS["xor"]
    rows = row_bytes_of(spec, row_bytes)
    if layout == "page" and row_bytes > 4096:
        with pytest.raises(InvalidInput, match="layout page"):
            unit_of(PAGE, spec, rows, layout=layout)
        return
    unit = unit_of(PAGE, spec, rows, layout=layout)
    lookups = TokenLookups(spec, Tokens(documents), None)
    planned = schedule(lookups, Turns())
    found = accesses_of(lookups, planned, unit)
    stride = {"packed": row_bytes, "aligned-512": -(-row_bytes // 512) * 512,
              "aligned-1024": -(-row_bytes // 1024) * 1024}  # fmt: skip
    first_page, wanted = 0, []
    firsts = []
    for layer in spec.layers:
        firsts.append(first_page)
        if layout == "page":
            n_pages = -(-layer.n_rows // (4096 // row_bytes))
        else:
            n_pages = -(-layer.n_rows * stride[layout] // 4096)
        first_page += n_pages
    for token in range(lookups.n_tokens):
        if token in lookups.dead:
            continue
        of_token = lookups.rows(token, token + 1)[0]
        for layer in range(len(spec.layers)):
            for row in of_token[layer].tolist():
                if layout == "page":
                    pages = [row // (4096 // row_bytes)]
                else:
                    begin = row * stride[layout]
                    pages = sorted({byte // 4096 for byte in (*range(begin, begin + row_bytes, 512),
                                                              begin + row_bytes - 1)})  # fmt: skip
                wanted += [firsts[layer] + page for page in pages]
    assert found.items.tolist() == wanted
    assert unit.n_items == first_page
    if len(wanted):
        counted = np.diff(found.step_starts) / (len(spec.layers) * spec.n_columns)
        assert counted.max() <= unit.most_items_a_row


def test_planar_pages_of_released_rows_are_two():
    from engram_tables.address.presets import load_spec

    spec = load_spec("deepseek-v4.1-flash")
    rows = row_bytes_of(spec, None)
    assert (rows.n_bytes, rows.source) == (264, "published")
    planar = unit_of(PAGE, spec, rows, layout="planar")
    packed = unit_of(PAGE, spec, rows)
    assert planar.most_items_a_row == 2
    assert packed.most_items_a_row == 2
    assert planar.n_items == sum(-(-layer.n_rows * n // 4096) for layer in spec.layers for n in (256, 8))


def test_a_sample_is_that_of_the_whole_trace():
    spec = SPECS["xor"]
    documents = np.random.default_rng(1).integers(0, 12, (20, 40)).tolist()
    lookups = TokenLookups(spec, Tokens(documents), None)
    planned, unit = schedule(lookups, Turns(n_streams=3)), unit_of(ROW, spec, row_bytes_of(spec, 8))
    wanted = sampled(accesses_of(lookups, planned, unit), 0.25, first_steady_step=100)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streams, "CHUNK_TOKENS", 7)
        found = accesses_of(lookups, planned, unit, rate=0.25, first_steady_step=100)
    assert found.items.tolist() == wanted.items.tolist()
    assert found.classes.tolist() == wanted.classes.tolist()
    assert found.step_starts.tolist() == wanted.step_starts.tolist()
    assert found.n_whole is not None
    assert wanted.n_whole is not None
    assert found.n_whole.tolist() == wanted.n_whole.tolist()
    assert 0 < len(found) < 20 * 40 * 8


def test_a_row_length_must_be_known():
    with pytest.raises(InvalidInput, match="--row-bytes"):
        row_bytes_of(SPECS["xor"], None)
    with pytest.raises(InvalidInput, match="split"):
        row_bytes_of(SPECS["xor"], 264).layout("planar")


@pytest.mark.parametrize(("n_streams", "tokens"), [(0, 1), (1, 0), (65_537, 1)])
def test_turns_are_bounded(n_streams, tokens):
    with pytest.raises(InvalidInput, match=r"streams: found|tokens of a batch or chunk: found 0"):
        Turns(n_streams=n_streams, tokens_a_turn=tokens)
