"""`engram report`: one page from files of records, with exit codes and words of its own."""

from __future__ import annotations

import json
from pathlib import Path

from .conftest import Engram

MEASURED = Path(__file__).resolve().parents[2] / "docs" / "measurements"


def test_records_become_one_page(engram: Engram) -> None:
    plan = ("plan", "--preset", "engram-demo", "--disk-reads-per-s", "1e5", "--tokens-per-s", "9")
    for name, ratio in (("slow.json", "0.5"), ("fast.json", "0.9")):
        assert engram(*plan, "--hit-ratio", ratio, "--cache", "1MB", "--record", name).code == 0
    ran = engram("report", "slow.json", "fast.json", MEASURED / "overlap.json", "-o", "page.html", "--title", "A & B")
    assert (ran.code, ran.out) == (0, "")
    assert "wrote page.html" in ran.err
    assert "4 records" in ran.err
    page = Path("page.html").read_text(encoding="utf-8")
    assert "<h1>A &amp; B</h1>" in page
    for words in ("A · slow.json", "B · fast.json", "C · overlap.json", "nvme-packed", "Fetching beside a model"):
        assert words in page
    again = engram("report", "slow.json", "-o", "page.html")
    assert again.code == 3
    assert "page.html: exists already" in again.err
    assert engram("report", "slow.json", "-o", "page.html", "--force").code == 0
    assert "One record:" in Path("page.html").read_text(encoding="utf-8")


def test_what_cannot_be_drawn_is_refused(engram: Engram) -> None:
    Path("old.json").write_text(json.dumps({"schema": "engram.plan/0"}))
    ran = engram("report", "old.json", "-o", "page.html")
    assert ran.code == 3
    assert "old.json: found engram.plan/0 of an older version, expected engram.plan/1; make the record anew" in ran.err
    missing = engram("report", "none.json", "-o", "page.html")
    assert missing.code == 3
    assert "none.json" in missing.err
    assert engram("report", "-o", "page.html").code == 2
    assert engram("report", "old.json").code == 2
    assert not Path("page.html").exists()
