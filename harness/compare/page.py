"""Building blocks of a self-contained HTML page: style, tables, and embedded figures."""

import base64
import io
from collections.abc import Iterable, Sequence
from html import escape

from matplotlib import rc_context
from matplotlib.figure import Figure

from harness.compare.alignment import aligned_left

STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1d1d1f; --dim: #56565b; --rule: #e4e4e7;
  --strong: #8e8e93; }
@media screen and (prefers-color-scheme: dark) { :root { --paper: #1b1b1f; --ink: #ececef;
  --dim: #a9a9b0; --rule: #3a3a40; --strong: #75757c; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 68rem; padding: 2.5rem 1.5rem 4rem; background: var(--paper);
  color: var(--ink);
  font: 400 1rem/1.55 system-ui, "Segoe UI", Roboto, "Helvetica Neue", sans-serif;
  overflow-wrap: break-word; }
h1 { font-weight: 600; font-size: 1.9rem; line-height: 1.2; margin: 0 0 .4rem; }
h2 { font-weight: 600; font-size: 1.15rem; margin: 2.6rem 0 .7rem; }
p, ul { margin: .5rem 0; }
.about, figcaption, .notes { color: var(--dim); font-size: .9rem; }
.winner { font-size: 1.2rem; line-height: 1.45; margin: 1.4rem 0 1.2rem; }
.rivals { list-style: none; padding: 0; }
.rivals li { margin: .8rem 0; padding-left: 1.1rem; border-left: 4px solid var(--colour); }
.rivals b { font-weight: 600; }
figure { margin: 1.2rem 0; overflow-x: auto; }
figure img { display: block; width: 100%; max-width: 46rem; height: auto; background: #fff; }
figure.wide img { max-width: none; }
.scroll { overflow-x: auto; margin: .8rem 0; }
table { border-collapse: collapse; font-size: .82rem; font-variant-numeric: tabular-nums; }
th, td { padding: .28rem .55rem; text-align: right; border-bottom: 1px solid var(--rule); }
td { white-space: nowrap; }
th { font-weight: 600; vertical-align: bottom; border-bottom: 1px solid var(--strong); }
.text { text-align: left; }
th:first-child, td:first-child { padding-left: 0; }
.swatch { display: inline-block; width: .7em; height: .7em; margin-right: .45em; }
dl { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: .25rem 1.2rem;
  font-size: .9rem; }
dt { color: var(--dim); } dd { margin: 0; }
@media (max-width: 40rem) { body { padding: 1.2rem 1rem 3rem; } h1 { font-size: 1.45rem; }
  .winner { font-size: 1.05rem; } dl { grid-template-columns: minmax(0, 1fr); }
  dd { margin: 0 0 .4rem; } figure img { min-width: 34rem; } }
@media print { body { max-width: none; padding: 0; font-size: 10pt; } .scroll { overflow: visible; }
  table { font-size: 6.5pt; } th, td { padding: .15rem .25rem; }
  figure, table, li { break-inside: avoid; } h2 { break-after: avoid; } }
"""


def page(title: str, body: Sequence[str]) -> str:
    """A complete document that needs no network."""
    return "\n".join(
        (
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<link rel="icon" href="data:,">',  # otherwise browsers request /favicon.ico
            f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>",
            *body,
            "</body></html>\n",
        )
    )


def table(cells: Sequence[Sequence[str]], colours: dict[str, str] | None = None) -> str:
    """An HTML table of a header row and rows; a first cell found in `colours` gets a swatch."""
    head, *rows = cells
    known = colours or {}
    kinds = [' class="text"' if left else "" for left in aligned_left(cells)]
    lines = [_row("th", kinds, map(escape, head))]
    for first, *rest in rows:
        own = swatch(known[first]) if first in known else ""
        lines.append(_row("td", kinds, [own + escape(first), *map(escape, rest)]))
    return '<div class="scroll"><table>\n' + "\n".join(lines) + "\n</table></div>"


def _row(tag: str, kinds: Sequence[str], cells: Iterable[str]) -> str:
    inside = (f"<{tag}{kind}>{cell}</{tag}>" for kind, cell in zip(kinds, cells, strict=True))
    return f"<tr>{''.join(inside)}</tr>"


def swatch(colour: str) -> str:
    """A small square of the given colour."""
    return f'<span class="swatch" style="background:{colour}"></span>'


def figure(drawn: Figure, alt: str, caption: str, wide: bool = False) -> str:
    """The figure with its caption, embedded as SVG: sharp on paper and on any screen. A `wide` one
    is as wide as the page."""
    buffer = io.BytesIO()
    # Without a fixed salt, ids are random and the same figure would give different bytes.
    with rc_context({"svg.hashsalt": "harness"}):
        drawn.savefig(buffer, format="svg", metadata={"Date": None})
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    image = f'<img alt="{escape(alt)}" src="data:image/svg+xml;base64,{data}">'
    kind = ' class="wide"' if wide else ""
    return f"<figure{kind}>{image}<figcaption>{escape(caption)}</figcaption></figure>"


def items(lines: Sequence[str], kind: str) -> str:
    """A list of lines; `kind` is its CSS class."""
    inside = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f'<ul class="{kind}">{inside}</ul>'


def facts(pairs: Sequence[tuple[str, str]]) -> str:
    """A definition list of names and values."""
    inside = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in pairs)
    return f"<dl>{inside}</dl>"
