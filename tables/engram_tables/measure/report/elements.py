"""HTML and SVG as trees, so that every word of a record is escaped by the serialiser and none is pasted into markup.

Owns how elements are made and spelled. Knows no record and no chart.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from xml.etree.ElementTree import Element, tostring

Child = Element | str | None

_ON_LINES_OF_THEIR_OWN = {
    "section", "figure", "table", "tr", "details", "svg", "p", "ul", "li", "h1", "h2", "h3", "div", "nav", "g", "path",
    "text", "rect", "line", "pre", "meta", "title", "style",
}  # fmt: skip


def tag(name: str, /, *children: Child, **attributes: str | float) -> Element:
    """An element.

    Parameters
    ----------
    name
        Of the element.
    children
        Elements and words, in their order; None is left out.
    attributes
        `class_` is spelled `class`, `aria_label` as `aria-label`. Numbers are rounded to a hundredth.
    """
    spelled = {key.rstrip("_").replace("_", "-"): _attribute(value) for key, value in attributes.items()}
    element = Element(name, spelled)
    if name in _ON_LINES_OF_THEIR_OWN:
        element.tail = "\n"
    last: Element | None = None
    for child in children:
        if isinstance(child, Element):
            element.append(child)
            last = child
        elif child is not None:
            words = printable(child)
            if last is None:
                element.text = (element.text or "") + words
            else:
                last.tail = (last.tail or "") + words
    return element


def listed(items: Iterable[Child]) -> Element | None:
    """An unordered list; None of no items."""
    entries = [tag("li", item) for item in items]
    return tag("ul", *entries) if entries else None


def side_by_side(charts: Iterable[Element | None]) -> Element | None:
    """Charts in as many columns as the page has room for; None of no charts."""
    held = [chart for chart in charts if chart is not None]
    return tag("div", *held, class_="grid") if held else None


def table(
    columns: Sequence[str], rows: Sequence[Sequence[Child]], *, caption: str, n_left: int = 1, is_wide: bool = False
) -> Element:
    """A table that scrolls within its own frame, where a narrow page cannot hold it.

    Parameters
    ----------
    columns
        Headings.
    rows
        Cells by row; the first is the row's heading.
    caption
        What the table says, for all readers.
    n_left
        Columns of words, flush left; the others are figures.
    is_wide
        Whether cells hold sentences, which may be broken.
    """
    head = tag("tr", *(tag("th", name, scope="col", class_=_side(at, n_left)) for at, name in enumerate(columns)))
    body = [
        tag(
            "tr",
            *(
                tag("th", cell, scope="row") if at == 0 else tag("td", cell, class_=_side(at, n_left))
                for at, cell in enumerate(row)
            ),
        )
        for row in rows
    ]
    inside = tag("table", tag("caption", caption), tag("thead", head), tag("tbody", *body))
    if is_wide:
        inside.set("class", "wide")
    # Whoever has no pointer scrolls with the keys, once the frame has the focus.
    return tag("div", inside, class_="scroll", role="region", aria_label=caption, tabindex="0")


def printable(words: str) -> str:
    """`words` with control and formatting characters as escapes: none is invisible, and none turns the others round."""
    return "".join(c if c.isprintable() or c in " \n" else c.encode("unicode_escape").decode() for c in words)


def spelled(root: Element) -> str:
    """The document's text."""
    return "<!DOCTYPE html>\n" + tostring(root, encoding="unicode", method="html")


def _attribute(value: str | float) -> str:
    return printable(value) if isinstance(value, str) else f"{value:.2f}".rstrip("0").rstrip(".")


def _side(column: int, n_left: int) -> str:
    return "words" if column < n_left else "number"
