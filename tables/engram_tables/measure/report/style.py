"""The page's style: light and dark by the reader's own setting, columns where there is room, and paper.

Colours: every ink has a contrast of 4.5 to 1 at least against its paper, every series 3 to 1.
"""

from __future__ import annotations

# Okabe and Ito's colours, told apart by colour-blind readers too, darkened or lightened for their paper.
_LIGHT = {
    "ink": "#1a1d21", "muted": "#525a63", "grid": "#e1e4e8", "line": "#9aa1a9", "paper": "#fefefe", "card": "#f5f6f8",
    "link": "#0b5cad",
    "c0": "#0067a3", "c1": "#c24e00", "c2": "#007d5b", "c3": "#b0508a", "c4": "#8a6a00", "c5": "#2b83b8",
    "c6": "#1a1d21", "c7": "#6a717a",
}  # fmt: skip
_DARK = {
    "ink": "#e8eaed", "muted": "#a9b1bb", "grid": "#2e3338", "line": "#69717a", "paper": "#15181b", "card": "#1d2125",
    "link": "#7ab8f5",
    "c0": "#4ba6e0", "c1": "#f08a4b", "c2": "#2fc49b", "c3": "#dd9bc0", "c4": "#d9b44a", "c5": "#8ccaf0",
    "c6": "#f2f3f5", "c7": "#98a1ab",
}  # fmt: skip


def _variables(colours: dict[str, str]) -> str:
    return " ".join(f"--{name}: {colour};" for name, colour in colours.items())


_SERIES = "\n".join(f".c{at} {{ --own: var(--c{at}); }}" for at in range(8))

STYLE = f"""
:root {{ color-scheme: light dark; {_variables(_LIGHT)} }}
@media (prefers-color-scheme: dark) {{ :root {{ {_variables(_DARK)} }} }}
{_SERIES}
* {{ box-sizing: border-box; }}
body {{ margin: 0 auto; max-width: 80rem; padding: 1rem; font: 16px/1.5 system-ui, -apple-system, "Segoe UI",
  "DejaVu Sans", sans-serif; color: var(--ink); background: var(--paper); overflow-wrap: anywhere; }}
h1 {{ font-size: 1.7rem; margin: 0.5rem 0 0.2rem; }}
h2 {{ font-size: 1.35rem; margin: 2.4rem 0 0.4rem; padding-top: 0.8rem; border-top: 2px solid var(--line); }}
h3 {{ font-size: 1.05rem; margin: 1.6rem 0 0.4rem; }}
p {{ max-width: 48rem; margin: 0.4rem 0; }}
a {{ color: var(--link); }}
a:focus-visible, summary:focus-visible, .scroll:focus-visible {{ outline: 3px solid var(--link); outline-offset: 2px; }}
.skip {{ position: absolute; left: -100rem; }}
.skip:focus {{ position: static; }}
.files {{ display: flex; flex-wrap: wrap; gap: 0 1.2rem; list-style: none; padding: 0; margin: 0.2rem 0; }}
nav ul {{ display: flex; flex-wrap: wrap; gap: 0.2rem 1.2rem; list-style: none; padding: 0; margin: 0.6rem 0; }}
.lead, .note {{ color: var(--muted); }}
.grid {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 23.5rem), 1fr)); gap: 1rem;
  align-items: start; margin: 0.8rem 0; }}
figure {{ margin: 0; padding: 0.8rem; background: var(--card); border-radius: 0.5rem; min-width: 0; max-width: 38rem; }}
figcaption {{ font-weight: 600; font-size: 0.95rem; line-height: 1.35; margin-bottom: 0.4rem; }}
figure svg:not(.swatch) {{ display: block; width: 100%; height: auto; }}
.note {{ font-size: 0.82rem; margin: 0.3rem 0; }}
.legend {{ list-style: none; display: flex; flex-wrap: wrap; gap: 0.15rem 1rem; margin: 0.4rem 0; padding: 0;
  font-size: 0.85rem; }}
.legend li {{ display: flex; align-items: center; gap: 0.4rem; }}
.swatch {{ width: 2.25rem; height: 1rem; flex: none; }}
summary {{ cursor: pointer; color: var(--link); font-size: 0.85rem; padding: 0.2rem 0; }}
.scroll {{ overflow-x: auto; margin: 0.6rem 0; overflow-wrap: normal; }}
table {{ border-collapse: collapse; font-size: 0.85rem; font-variant-numeric: tabular-nums; }}
caption {{ text-align: left; font-weight: 600; padding: 0.2rem 0; }}
th, td {{ padding: 0.3rem 0.6rem; border-bottom: 1px solid var(--grid); text-align: left; vertical-align: top;
  white-space: nowrap; }}
thead th {{ border-bottom: 2px solid var(--line); vertical-align: bottom; white-space: normal; }}
tbody th {{ font-weight: 400; }}
th.number, td.number {{ text-align: right; }}
.wide th, .wide td {{ white-space: normal; text-align: left; min-width: 6rem; }}
.wide tbody th {{ min-width: 9.5rem; }}
.wide td:last-child {{ min-width: 16rem; }}
.word {{ display: inline-block; max-width: 100%; vertical-align: top; }}
pre {{ white-space: pre-wrap; overflow-wrap: anywhere; background: var(--card); padding: 0.6rem; border-radius: 0.4rem;
  font: 0.85rem/1.45 ui-monospace, "DejaVu Sans Mono", monospace; margin: 0.3rem 0 1rem; }}
svg text {{ font-size: 13px; fill: var(--muted); }}
svg .middle {{ text-anchor: middle; }}
svg .end {{ text-anchor: end; }}
svg .label {{ fill: var(--ink); }}
svg .halo {{ fill: var(--ink); paint-order: stroke; stroke: var(--card); stroke-width: 4px; }}
svg .strong {{ font-weight: 600; }}
svg .gridline {{ stroke: var(--grid); }}
svg .axis {{ stroke: var(--line); }}
svg .reference {{ stroke: var(--ink); stroke-dasharray: 5 4; }}
.series .stroke {{ fill: none; stroke: var(--own); stroke-width: 2; stroke-linejoin: round; }}
.series .bound {{ stroke-width: 1.2; }}
.series .whisker {{ fill: none; stroke: var(--own); stroke-width: 1.2; }}
.series .box {{ fill: var(--own); fill-opacity: 0.35; }}
.series .fill {{ fill: var(--own); }}
.series .mark {{ fill: var(--own); stroke: var(--card); stroke-width: 0.8; }}
.series .dot {{ fill: var(--paper); stroke: var(--ink); stroke-width: 1.6; }}
.series .open {{ fill: none; stroke: var(--own); stroke-width: 1.8; }}
@media (max-width: 40rem) {{
  body {{ padding: 0.7rem; }}
  figure {{ padding: 0.6rem; }}
  svg text {{ font-size: 14px; }}
}}
@media print {{ nav {{ display: none; }} figure {{ break-inside: avoid; }} }}
"""
