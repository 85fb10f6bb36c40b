"""A page of records: whole, readable without seeing it, deaf to what a record wants, and refused where it cannot be."""

from __future__ import annotations

import base64
import copy
import hashlib
import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engram_tables.errors import InvalidInput
from engram_tables.measure.report import reading, style
from engram_tables.measure.report.page import SCHEMAS, draw_page, write_report
from engram_tables.measure.report.reading import Entry, read_records

MEASURED = Path(__file__).resolve().parents[3] / "docs" / "measurements"
REAL = [MEASURED / name for name in ("bench-offload.json", "hit_curves.json", "overlap.json")]
COUNTS = {
    "schema": "engram.counts/2", "min_count": 1, "next": None,
    "corpus": {"n_tokens": 40, "n_documents": 2, "n_dead": 0},
    "orders": {
        order: {"n_rows": 9, "n_distinct": 9 * int(order), "n_total": 40, "dropped_distinct": 0, "dropped_total": 0}
        for order in ("1", "2")
    },
}  # fmt: skip


class Seen(HTMLParser):
    """Every element with its attributes and the elements around it, and all words."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str], tuple[str, ...]]] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(page)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {key: value or "" for key, value in attrs}, tuple(self._open)))
        if tag not in ("meta", "link"):
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def named(self, name: str) -> list[dict[str, str]]:
        return [attributes for tag, attributes, _ in self.elements if tag == name]

    @property
    def text(self) -> str:
        return "".join(self.words)


def _entry(record: dict[str, Any], label: str = "A") -> Entry:
    return Entry(label=label, file=f"{label}.json", schema=record["schema"], record=record)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Real records of three kinds, three of one kind among them."""
    path = tmp_path_factory.mktemp("report") / "report.html"
    drawn = write_report(path, REAL)
    assert [entry.schema for entry in drawn].count("engram.simulate/1") == 3
    return path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def seen(page: str) -> Seen:
    return Seen(page)


@pytest.fixture(scope="module")
def simulation() -> dict[str, Any]:
    record: dict[str, Any] = json.loads((MEASURED / "hit_curves.json").read_bytes())["texts"][0]["simulation"]
    return record


def test_the_page_asks_for_nothing_and_runs_nothing(page: str, seen: Seen) -> None:
    (policy,) = [each["content"] for each in seen.named("meta") if each.get("http-equiv") == "Content-Security-Policy"]
    (sheet,) = re.findall(r"<style>(.*?)</style>", page, flags=re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(sheet.encode()).digest()).decode()
    assert policy.startswith("default-src 'none'; ")
    assert f"style-src 'sha256-{digest}'" in policy
    assert "url(" not in sheet
    assert "@import" not in sheet
    for name, attributes, _ in seen.elements:
        assert name not in {"script", "iframe", "img", "object", "form", "image", "use"}
        assert not any(key.startswith("on") or key in ("style", "src", "srcset") for key in attributes)
        assert attributes.get("href", "#")[0] == "#" or attributes["href"] == "data:,"


def test_every_chart_is_named_and_has_its_figures_as_a_table(seen: Seen) -> None:
    ids = [attributes["id"] for _, attributes, _ in seen.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    figures = seen.named("figure")
    pictures = [each for each in seen.named("svg") if each.get("role") == "img"]
    assert len(figures) == len(pictures) == len(seen.named("figcaption")) > 20
    assert sum(name == "table" and "figure" in around for name, _, around in seen.elements) == len(figures)
    for picture in pictures:
        assert set(picture["aria-labelledby"].split()) <= set(ids)
    links = [attributes["href"] for attributes in seen.named("a")]
    assert links
    assert {link[1:] for link in links} <= set(ids)
    assert all(each.get("aria-hidden") or each.get("role") for each in seen.named("svg"))
    assert all(each.get("scope") in ("col", "row") for each in seen.named("th"))
    for name, attributes, _ in seen.elements:
        if attributes.get("class") == "scroll":
            assert (name, attributes["tabindex"], bool(attributes["aria-label"])) == ("div", "0", True)


def test_headings_skip_no_level(seen: Seen) -> None:
    levels = [int(name[1]) for name, _, _ in seen.elements if re.fullmatch(r"h[1-6]", name)]
    assert levels.count(1) == 1
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))


def test_what_is_drawn_is_what_the_records_say(seen: Seen, simulation: dict[str, Any]) -> None:
    for curve in simulation["curves"]:
        for point in curve["points"]:
            if point["hit_ratio"]:
                assert f"{100 * point['hit_ratio']:.1f} %" in seen.text or point["hit_ratio"] < 0.01
    record = json.loads(REAL[0].read_bytes())
    shares = [p["share_of_ceiling"] for s in record["sections"] for p in s["points"] if p["trace"] == "text"]
    assert shares
    assert all(f"{100 * share:.{2 if share < 0.01 else 1}f} %" in seen.text for share in shares)
    assert " ".join(record["command"][:3]) in seen.text
    assert record["environment"]["kernel"] in seen.text


def test_equal_records_give_equal_bytes(tmp_path: Path) -> None:
    for name in ("one.html", "two.html"):
        write_report(tmp_path / name, REAL[1:])
    assert (tmp_path / "one.html").read_bytes() == (tmp_path / "two.html").read_bytes()


@pytest.mark.parametrize(
    "words",
    ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "</style></title></svg><script>", "&lt;script&gt;",
     "javascript:alert(1)"],
)  # fmt: skip
def test_what_a_record_says_stays_words(words: str, simulation: dict[str, Any]) -> None:
    record = copy.deepcopy(simulation)
    record["spec"] = record["corpus"]["paths"] = record["representative"]["verdict"] = words
    record["command"], record["environment"] = ["engram", words], {words: words, "packages": {words: words}}
    for curve in record["curves"]:
        curve["policy"] = words
    record["left_out"] = [{"policy": words, "unit": words, "cache_bytes": None, "reason": words}]
    shown = Seen(draw_page([_entry(record), _entry(record, "B")], title=words))
    assert words in shown.text
    assert {name for name, _, _ in shown.elements}.isdisjoint({"script", "img"})
    assert not any(key.startswith("on") for _, attributes, _ in shown.elements for key in attributes)


def test_invisible_characters_become_visible(simulation: dict[str, Any]) -> None:
    record = {**simulation, "spec": "a\x00\x1b[2J\u202egnp.\ud800z"}
    page = draw_page([_entry(record)], title="t")
    assert "a\\x00\\x1b[2J\\u202egnp.\\ud800z" in Seen(page).text
    page.encode()


WRONG: list[tuple[str, bytes, str]] = [
    ("empty", b"", "no JSON"),
    ("no JSON", b"engram", "no JSON"),
    ("half", b'{"schema": ', "no JSON"),
    ("not text", b"\xff\xfe{}", "no UTF-8"),
    ("not a number", b'{"schema": "engram.plan/1", "n": NaN}', "NaN"),
    ("deep", b"[" * 100_000, "no JSON"),
    ("list", b"[1]", "no schema"),
    ("no schema", b'{"a": 1}', "no schema"),
    ("another's schema", b'{"schema": "other/1"}', "schema 'other/1'"),
    ("schema of another type", b'{"schema": [1]}', "schema '[1]'"),
    ("no chart", b'{"schema": "engram.golden/1"}', "engram.golden/1, which has no chart"),
    ("older", b'{"schema": "engram.counts/1"}', "an older version, expected engram.counts/2; make"),
    ("newer", b'{"schema": "engram.simulate/9"}', "a newer version, expected engram.simulate/1; draw"),
    ("nothing inside", b'{"schema": "engram.benchmark-gather/2", "points": []}', "has no chart"),
    ("not whole", b'{"schema": "engram.simulate/1"}', "not whole (no 'runs')"),
]


@pytest.mark.parametrize(("content", "told"), [each[1:] for each in WRONG], ids=[each[0] for each in WRONG])
def test_what_is_no_record_is_refused(content: bytes, told: str, tmp_path: Path) -> None:
    (tmp_path / "wrong.json").write_bytes(content)
    with pytest.raises(InvalidInput, match=r"wrong\.json") as caught:
        write_report(tmp_path / "page.html", [REAL[2], tmp_path / "wrong.json"])
    assert told in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["wrong.json"]


def test_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidInput, match="no record"):
        write_report(tmp_path / "page.html", [])
    lines = tmp_path / "lines.jsonl"
    lines.write_text(json.dumps(COUNTS) + "\n" + json.dumps(COUNTS) + "\n\n")
    assert [entry.label for entry in read_records([lines], schemas=SCHEMAS)] == ["A", "B"]
    monkeypatch.setattr(reading, "MOST_RECORDS", 1)
    with pytest.raises(InvalidInput, match="2 records, expected 1"):
        read_records([lines], schemas=SCHEMAS)
    monkeypatch.setattr(reading, "MOST_RECORD_BYTES", 100)
    with pytest.raises(InvalidInput, match="more than 100 bytes"):
        read_records([lines], schemas=SCHEMAS)
    with pytest.raises(InvalidInput, match=r"without counts\.json"):
        read_records([tmp_path], schemas=SCHEMAS)


def test_letters_go_on_after_z(tmp_path: Path) -> None:
    lines = tmp_path / "lines.jsonl"
    lines.write_text(f"{json.dumps(COUNTS)}\n" * 54)
    labels = [entry.label for entry in read_records([lines], schemas=SCHEMAS)]
    assert (labels[25], labels[26], labels[52], labels[53]) == ("Z", "AA", "BA", "BB")


def test_a_directory_of_counts_is_its_manifest(tmp_path: Path) -> None:
    (tmp_path / "counts").mkdir()
    (tmp_path / "counts" / "counts.json").write_text(json.dumps(COUNTS, indent=1))
    write_report(tmp_path / "page.html", [tmp_path / "counts"])
    assert "A · counts" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_where_the_page_may_not_stand(tmp_path: Path) -> None:
    taken = tmp_path / "page.html"
    taken.write_text("before")
    elsewhere = ((tmp_path / "page.pdf", r"\.html"), (tmp_path / "no" / "page.html", "does not exist"))
    for path, told in ((taken, "exists already"), *elsewhere):
        with pytest.raises(InvalidInput, match=told):
            write_report(path, REAL[2:])
    with pytest.raises(InvalidInput, match="among the records"):
        write_report(taken, [taken], force=True)
    assert taken.read_text() == "before"
    write_report(taken, REAL[2:], force=True)
    assert taken.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")


def _places(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Ways to every value, of lists to the first two alone."""
    if place and place != ("schema",):
        yield place
    items = value.items() if isinstance(value, dict) else enumerate(value[:2]) if isinstance(value, list) else ()
    for key, each in items:
        yield from _places(each, (*place, key))


_ODD = [None, "x", "<b>", -1, 0, 1e308, 1e-320, 10**400, True, [], [[]], {}, {"value": None}, 2.5]


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_odd_records_are_drawn_or_refused(data: st.DataObject, simulation: dict[str, Any]) -> None:
    overlap = json.loads(REAL[2].read_bytes())["runs"][0]
    record = copy.deepcopy(data.draw(st.sampled_from([simulation, overlap, COUNTS])))
    place = data.draw(st.sampled_from(list(_places(record))))
    inside = record
    for key in place[:-1]:
        inside = inside[key]
    inside[place[-1]] = data.draw(st.sampled_from(_ODD))
    try:
        page = draw_page([_entry(record), _entry(simulation, "B")], title="t")
    except InvalidInput:
        return
    assert not re.search(r"\b(nan|inf)\b", page)
    assert "<b>" not in page


def _luminance(colour: str) -> float:
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _contrast(one: str, other: str) -> float:
    dark, light = sorted((_luminance(one), _luminance(other)))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("colours", [style._LIGHT, style._DARK], ids=["light", "dark"])
def test_words_and_lines_stand_out(colours: dict[str, str]) -> None:
    """The contrast that WCAG 2 asks for: 4.5 for words, 3 for graphics."""
    for paper in ("paper", "card"):
        for words in ("ink", "muted", "link"):
            assert _contrast(colours[words], colours[paper]) >= 4.5
        for nth in range(8):
            assert _contrast(colours[f"c{nth}"], colours[paper]) >= 3
