"""The page in a real browser: nothing is asked for, nothing complained of, and no width makes it scroll sideways."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from engram_tables.measure.report.page import write_report

sys.path.insert(0, str(Path(__file__).parent))
from browser import NAMES, found_browser, headless

MEASURED = Path(__file__).resolve().parents[3] / "docs" / "measurements"


@pytest.mark.slow
def test_a_browser_shows_it_at_both_widths_and_in_both_themes(tmp_path: Path) -> None:
    program = found_browser()
    if program is None:
        pytest.skip(f"there is no browser: none of {', '.join(NAMES)} was found")
    page = tmp_path / "report.html"
    write_report(page, [MEASURED / name for name in ("bench-offload.json", "hit_curves.json", "overlap.json")])
    papers = {}
    with headless(program, tmp_path / "profile") as browser:
        for width in (1280, 390):
            for is_dark in (False, True):
                browser.open(page.as_uri(), width=width, is_dark=is_dark)
                papers[is_dark] = browser.value("getComputedStyle(document.body).backgroundColor")
                assert browser.value("document.documentElement.scrollWidth") == width
                # The policy lets the page's own style through: without it a figure has no colour of its own.
                assert browser.value("getComputedStyle(document.querySelector('.stroke')).strokeWidth") != "1px"
                browser.value("document.querySelectorAll('details').forEach(each => { each.open = true; })")
                assert browser.value("document.documentElement.scrollWidth") == width
                picture = tmp_path / f"{width}-{is_dark}.png"
                browser.screenshot(picture)
                assert picture.stat().st_size > 50_000
                assert browser.requests() == [page.as_uri()]
                assert browser.complaints() == []
    assert papers[False] != papers[True]


@pytest.mark.slow
def test_the_browser_would_tell(tmp_path: Path) -> None:
    """The check above can fail: a page with a picture from elsewhere and a script is told of."""
    program = found_browser()
    if program is None:
        pytest.skip(f"there is no browser: none of {', '.join(NAMES)} was found")
    page = tmp_path / "page.html"
    page.write_text("<img src='other.png'><script>console.error('found')</script><p style='width: 900px'>wide</p>")
    with headless(program, tmp_path / "profile") as browser:
        browser.open(page.as_uri(), width=390, is_dark=False)
        assert page.with_name("other.png").as_uri() in browser.requests()
        assert any("found" in told for told in browser.complaints())
        assert browser.value("document.documentElement.scrollWidth") > 390
