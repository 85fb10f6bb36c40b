"""Vocabularies against published digests, the plain-Python twin and wrong normalisers."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from engram_tables.address import reference
from engram_tables.address.folding import dense_ids, normaliser
from engram_tables.address.vocabulary import Rule, Vocabulary, build_vocabulary, load_vocabulary
from engram_tables.errors import BackendUnavailable, InvalidInput

V4_SHA256 = "c60a86322ec17b4142bfef3c57a8d81fb428550cdf487f88a4320cb59fe46481"
V4_SHA256_I64 = "26b9be2936d236a124ba318a998c417bc7032e3e92a3107fe98deee49f1dc496"
V3_SHA256 = "cd48cb62d9cca1baaf08d9e7795ad3d4c22b6c56f0f070178b9e3a52694ea930"
LARGEST = [(" ", 163), ("a", 54), ("o", 40), ("e", 35), ("i", 30)]


def test_v4_matches_the_published_map(v4_vocabulary: Vocabulary) -> None:
    assert (v4_vocabulary.token_count, v4_vocabulary.canonical_size) == (129_280, 99_092)
    assert v4_vocabulary.map_sha256 == V4_SHA256
    assert v4_vocabulary.map_sha256_i64 == V4_SHA256_I64
    assert [(g.form, len(g.token_ids)) for g in v4_vocabulary.largest_groups(5)] == LARGEST


def test_v3_matches_the_published_map(v3_tokenizer_json: Path) -> None:
    vocabulary = build_vocabulary(v3_tokenizer_json)
    assert (vocabulary.token_count, vocabulary.canonical_size) == (128_815, 98_627)
    assert vocabulary.map_sha256 == V3_SHA256
    assert [(g.form, len(g.token_ids)) for g in vocabulary.largest_groups(5)] == LARGEST
    assert reference.map_sha256(reference.deepseek_map(v3_tokenizer_json)) == V3_SHA256


def test_published_entries(v4_vocabulary: Vocabulary) -> None:
    assert v4_vocabulary.canonical(range(67)).tolist() == list(range(67))
    assert set(v4_vocabulary.canonical([67, 260]).tolist()) == {35}
    assert set(v4_vocabulary.canonical([1805, 270, 671, 455, 20852, 6367]).tolist()) == {237}
    assert set(v4_vocabulary.canonical([223, 201, 200, 262, 271]).tolist()) == {174}
    assert {1805, 270, 671, 455, 20852, 6367} <= set(v4_vocabulary.members(237))
    assert v4_vocabulary.form(237) == "the"


def test_plain_python_twin_agrees(v4_vocabulary: Vocabulary, v4_tokenizer_json: Path) -> None:
    twin = reference.deepseek_map(v4_tokenizer_json)
    assert twin == v4_vocabulary.canonical_ids.tolist()
    assert reference.map_sha256(twin) == V4_SHA256
    assert reference.map_sha256(twin, item_bytes=8) == V4_SHA256_I64


def test_twin_needs_neither_tokenizers_nor_numpy(v4_tokenizer_json: Path) -> None:
    program = (
        "import sys; sys.modules['numpy'] = sys.modules['tokenizers'] = None\n"
        "from pathlib import Path\n"
        "from engram_tables.address.reference import deepseek_map, map_sha256\n"
        f"print(map_sha256(deepseek_map(Path({str(v4_tokenizer_json)!r}))))"
    )
    printed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert printed.stdout.strip() == V4_SHA256


def _wrong_normaliser(
    *,
    nfkc: bool = True,
    nfd: bool = True,
    marks: tuple[str, ...] = ("M",),
    lower: Callable[[str], str] = lambda s: "".join(c.lower() for c in s),
    collapse: bool = True,
    sentinel: bool = True,
    strip: Callable[[str], str] = lambda s: s.strip(reference.WHITE_SPACE),
) -> Callable[[str], str]:
    def normalise(text: str) -> str:
        text = unicodedata.normalize("NFKC", text) if nfkc else text
        text = unicodedata.normalize("NFD", text) if nfd else text
        text = lower("".join(c for c in text if not unicodedata.category(c).startswith(marks or ("?",))))
        text = re.sub(r"[ \t\r\n]+", " ", text) if collapse else text
        return text if sentinel and text == " " else strip(text)

    return normalise


def _never(text: str) -> bool:
    return False


WRONG = {
    "no NFKC": (99_371, _wrong_normaliser(nfkc=False)),
    "no NFD": (100_983, _wrong_normaliser(nfd=False)),
    "strips only Mn": (99_510, _wrong_normaliser(marks=("Mn",))),
    "no accent strip": (102_083, _wrong_normaliser(marks=())),
    "casefold": (99_077, _wrong_normaliser(lower=str.casefold)),
    "no lowercase": (111_786, _wrong_normaliser(lower=str)),
    "no Strip": (109_054, _wrong_normaliser(strip=str)),
    "no sentinel": (99_250, _wrong_normaliser(sentinel=False)),
    "no white space collapse": (99_242, _wrong_normaliser(collapse=False)),
    "no rule for U+FFFD": (97_940, None),
    "U+FFFD keyed by its text": (98_049, None),
    "no fallback for the empty form": (98_879, None),
}


@pytest.fixture(scope="module")
def v4_token_texts(v4_tokenizer_json: Path) -> list[tuple[str, str]]:
    """Every token, by id, and its text."""
    data = json.loads(v4_tokenizer_json.read_bytes())
    tokens = {i: t for t, i in data["model"]["vocab"].items()} | {a["id"]: a["content"] for a in data["added_tokens"]}
    alphabet = reference.byte_alphabet()
    return [(tokens[i], reference.token_text(tokens[i], alphabet)) for i in range(len(tokens))]


@pytest.mark.parametrize("name", WRONG)
def test_wrong_normalisers_give_the_wrong_sizes_published_for_them(
    name: str, v4_token_texts: list[tuple[str, str]]
) -> None:
    """Negative controls: a rule that is off by one step is off by a known number of classes."""
    expected, normalise = WRONG[name]
    normalise = normalise or reference.normalise

    def key(token: str, text: str) -> str:
        if "\ufffd" in text and name == "U+FFFD keyed by its text":
            return text
        if "\ufffd" in text and name != "no rule for U+FFFD":
            return token
        return normalise(text) if name == "no fallback for the empty form" else normalise(text) or text

    assert max(dense_ids(key(token, text) for token, text in v4_token_texts)) + 1 == expected


@given(st.text())
@example("\ue000")
@example(" a\ue000 ")
@settings(max_examples=3000, deadline=None)
def test_normaliser_equals_its_plain_python_twin(text: str) -> None:
    # The tokenizers library knows the marks of an older Unicode than Python does: U+1CF00 is one to Python alone.
    # What both have known since Unicode 3.2 is compared here, and the published vocabularies whole, above.
    known = "".join(c for c in text if unicodedata.ucd_3_2_0.category(c) != "Cn")
    assert normaliser().normalize_str(known) == reference.normalise(known)


def test_identity_and_min_id(tiny_tokenizer_json: Path) -> None:
    identity = build_vocabulary(tiny_tokenizer_json, rule="identity")
    assert identity.canonical_ids.tolist() == list(range(identity.token_count))
    folded = build_vocabulary(tiny_tokenizer_json, rule=Rule.MIN_ID)
    the, cat = folded.encode(" the")[0], folded.encode("Cat")[0]
    assert folded.text(the) == " the"
    assert folded.canonical([the, the + 1, the + 2]).tolist() == [the] * 3
    assert folded.canonical([cat]).tolist() == folded.canonical(folded.encode(" cat")).tolist()
    # Each class is represented by its smallest token id, and ids keep their range.
    ids = folded.canonical_ids
    assert (ids <= np.arange(folded.token_count)).all()
    np.testing.assert_array_equal(ids[ids], ids)
    # Bytes that are no whole text fold with nothing under this rule.
    for token_id in range(folded.token_count):
        if "\ufffd" in folded.text(token_id):
            assert folded.members(token_id) == [token_id]


def test_saved_and_loaded_again(v4_vocabulary: Vocabulary, v4_vocab_file: Path, tmp_path: Path) -> None:
    loaded = load_vocabulary(v4_vocab_file)
    assert loaded.header() == v4_vocabulary.header()
    assert loaded.tokenizer_json == v4_vocabulary.tokenizer_json
    assert loaded.encode("import numpy as np") == v4_vocabulary.encode("import numpy as np")
    loaded.save(tmp_path / "again.parquet")
    assert (tmp_path / "again.parquet").read_bytes() == v4_vocab_file.read_bytes()


def test_file_columns_are_the_fixed_ones(tiny_vocab_file: Path) -> None:
    import pyarrow.parquet as pq

    table = pq.read_table(tiny_vocab_file)
    assert table.column_names == ["token_id", "token", "canonical_id"]
    assert [str(table.schema.field(name).type) for name in table.column_names] == ["uint32", "string", "uint32"]


def test_ids_out_of_range_are_refused_with_their_position(v4_vocabulary: Vocabulary) -> None:
    with pytest.raises(InvalidInput, match=r"position 2: found 129280, expected 0 to 129,279"):
        v4_vocabulary.canonical([0, 129_279, 129_280])
    with pytest.raises(InvalidInput, match=r"position 0: found -1"):
        v4_vocabulary.canonical(np.array([-1, 5]))
    with pytest.raises(InvalidInput, match="float64"):
        v4_vocabulary.canonical([1.0])
    assert v4_vocabulary.canonical(np.empty(0)).shape == (0,)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"not json", "not JSON"),
        (b"", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"{}", "no tokenizer"),
        (b'{"a": [', "not JSON"),
    ],
)
def test_what_is_no_tokenizer_is_refused(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)
    with pytest.raises(InvalidInput, match=message):
        build_vocabulary(path)
    with pytest.raises(InvalidInput, match=message):
        build_vocabulary(tmp_path)


def test_token_ids_with_a_gap_are_refused(tiny_tokenizer_json: Path, tmp_path: Path) -> None:
    data = json.loads(tiny_tokenizer_json.read_bytes())
    data["model"]["vocab"]["Ġsat"] += 5
    path = tmp_path / "gap.json"
    path.write_text(json.dumps(data), encoding="utf-8")
    with pytest.raises(InvalidInput, match="no token has id 262"):
        build_vocabulary(path)


def test_a_packaged_tokenizer_of_another_release_is_refused(v4_vocabulary: Vocabulary) -> None:
    with pytest.raises(BackendUnavailable, match=r"0\.2\.0"):
        build_vocabulary("deepseek-v3")


def test_damaged_files_are_refused(tiny_vocab_file: Path, tmp_path: Path) -> None:
    whole = tiny_vocab_file.read_bytes()
    path = tmp_path / "damaged.parquet"
    for stop in (0, 1, 4, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:stop])
        with pytest.raises(InvalidInput):
            load_vocabulary(path)
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"token_id": [1], "token": ["a"], "canonical_id": [0]}), path)
    with pytest.raises(InvalidInput, match="without engram"):
        load_vocabulary(path)
    with pytest.raises(FileNotFoundError):
        load_vocabulary(tmp_path / "missing.parquet")


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads are counted where Linux lists them")
def test_loading_starts_no_thread_that_could_outlive_the_process(tiny_vocab_file: Path) -> None:
    """One of Arrow's that holds a Python object when the process ends aborts it."""
    script = (
        "import os, sys, pyarrow.parquet; from engram_tables.address.vocabulary import load_vocabulary; "
        "count = lambda: len(os.listdir('/proc/self/task')); before = count(); load_vocabulary(sys.argv[1]); "
        "print(before, count())"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tiny_vocab_file)], capture_output=True, text=True)
    before, after = done.stdout.split()
    assert before == after, done.stderr


def test_truncation_and_padding_in_the_file_do_not_cut_texts(tiny_tokenizer_json: Path, tmp_path: Path) -> None:
    data = json.loads(tiny_tokenizer_json.read_bytes())
    data["truncation"] = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    data["padding"] = {
        "strategy": {"Fixed": 50},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "<pad>",
    }
    path = tmp_path / "limits.json"
    path.write_text(json.dumps(data), encoding="utf-8")
    assert build_vocabulary(path).encode("a cat sat") == build_vocabulary(tiny_tokenizer_json).encode("a cat sat")
