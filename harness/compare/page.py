"""Building blocks of a self-contained HTML page: style, tables, and embedded figures."""

import base64
import io
from collections.abc import Sequence
from html import escape

from matplotlib import rc_context
from matplotlib.figure import Figure

STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 68rem; padding: 2.5rem 1.5rem 4rem; background: #fff;
  color: #1d1d1f; font: 400 1rem/1.55 system-ui, "Segoe UI", Roboto, "Helvetica Neue", sans-serif;
  overflow-wrap: break-word; }
h1 { font-weight: 600; font-size: 1.9rem; line-height: 1.2; margin: 0 0 .4rem; }
h2 { font-weight: 600; font-size: 1.15rem; margin: 2.6rem 0 .7rem; }
p, ul { margin: .5rem 0; }
.about, figcaption, .notes { color: #56565b; font-size: .9rem; }
.winner { font-size: 1.2rem; line-height: 1.45; margin: 1.4rem 0 1.2rem; }
.rivals { list-style: none; padding: 0; }
.rivals li { margin: .8rem 0; padding-left: 1.1rem; border-left: 4px solid var(--colour); }
.rivals b { font-weight: 600; }
figure { margin: 1.2rem 0; overflow-x: auto; }
figure img { display: block; width: 100%; max-width: 46rem; height: auto; }
.scroll { overflow-x: auto; margin: .8rem 0; }
table { border-collapse: collapse; font-size: .82rem; font-variant-numeric: tabular-nums; }
th, td { padding: .28rem .55rem; text-align: right; white-space: nowrap;
  border-bottom: 1px solid #e4e4e7; }
th { font-weight: 600; border-bottom: 1px solid #8e8e93; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
.swatch { display: inline-block; width: .7em; height: .7em; margin-right: .45em; }
dl { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: .25rem 1.2rem;
  font-size: .9rem; }
dt { color: #56565b; } dd { margin: 0; }
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
    lines = ["<tr>" + "".join(f"<th>{escape(cell)}</th>" for cell in head) + "</tr>"]
    for first, *rest in rows:
        own = swatch(known[first]) if first in known else ""
        others = "".join(f"<td>{escape(cell)}</td>" for cell in rest)
        lines.append(f"<tr><td>{own}{escape(first)}</td>{others}</tr>")
    return '<div class="scroll"><table>\n' + "\n".join(lines) + "\n</table></div>"


def swatch(colour: str) -> str:
    """A small square of the given colour."""
    return f'<span class="swatch" style="background:{colour}"></span>'


def figure(drawn: Figure, alt: str, caption: str) -> str:
    """The figure with its caption, embedded as SVG: sharp on paper and on any screen."""
    buffer = io.BytesIO()
    # Without a fixed salt, ids are random and the same figure would give different bytes.
    with rc_context({"svg.hashsalt": "harness"}):
        drawn.savefig(buffer, format="svg", metadata={"Date": None})
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    image = f'<img alt="{escape(alt)}" src="data:image/svg+xml;base64,{data}">'
    return f"<figure>{image}<figcaption>{escape(caption)}</figcaption></figure>"


def items(lines: Sequence[str], kind: str) -> str:
    """A list of lines; `kind` is its CSS class."""
    inside = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f'<ul class="{kind}">{inside}</ul>'


def facts(pairs: Sequence[tuple[str, str]]) -> str:
    """A definition list of names and values."""
    inside = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in pairs)
    return f"<dl>{inside}</dl>"
