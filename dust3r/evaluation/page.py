"""An evaluation as one HTML file that needs nothing else."""

import base64
import html
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure

from dust3r.evaluation import report
from dust3r.evaluation.report import TARGETS

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 88rem; padding: 0 1rem;
  color: #1c1c1c; background: #fff; }
h1 { font-size: 1.5rem; } h2 { margin-top: 2.5rem; border-top: 1px solid #ccc; padding-top: 1rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; display: block;
  overflow-x: auto; }
th, td { padding: .25rem .7rem; text-align: right; border-bottom: 1px solid #e2e2e2;
  white-space: nowrap; }
th:first-child, td:first-child { text-align: left; } th { background: #f4f4f4; }
img { max-width: 100%; height: auto; } figure { margin: 1rem 0; } .wide { overflow-x: auto; }
.problem { background: #fff3d6; border-left: 4px solid #d99a00; padding: .4rem .8rem; }
dl { display: grid; grid-template-columns: max-content auto; gap: .1rem 1rem; }
dd { margin: 0; overflow-wrap: anywhere; } dt { color: #555; }
"""


@dataclass(frozen=True)
class Panel:
    """A picture of one image, under a caption."""

    benchmark: str
    caption: str
    png: bytes


def png_bytes(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


@dataclass(frozen=True)
class Section:
    """A part of a page.

    Attributes:
        title: of it.
        about: what it is.
        problems: what the reader is to be warned of.
        tables: headings, and tables as of ``report.table``.
        curves: PNG; None for none.
        panels: images.
    """

    title: str
    about: str
    problems: Sequence[str] = ()
    tables: Sequence[tuple[str, str]] = ()
    curves: bytes | None = None
    panels: Sequence[Panel] = ()


def page(
    title: str,
    told: Mapping[str, str],
    found: Sequence[Mapping[str, Any]],
    curves: Mapping[str, bytes],
    panels: Sequence[Panel],
) -> str:
    """The text of the page of an evaluation of uncertainty.

    Args:
        told: settings to show, by name.
        found: what ``MethodMetrics.compute`` gave, of all methods and benchmarks.
        curves: PNG by benchmark.
        panels: best, median and worst images.
    """
    sections = []
    for benchmark in dict.fromkeys(one["benchmark"] for one in found):
        rows = [one for one in found if one["benchmark"] == benchmark]
        tables = []
        for target, name in TARGETS.items():
            ranked = [one for one in rows if target in one["targets"]]
            if ranked:
                tables.append((name, report.ranking_table(ranked, target)))
        stated = [one for one in rows if "nll" in one]
        if stated:
            heading = "Stated distributions, without any alignment"
            tables.append((heading, report.likelihood_table(stated)))
        sections.append(
            Section(
                benchmark,
                report.about(rows[0]),
                problem_lines(report.problems(rows)),
                tables,
                curves.get(benchmark),
                [panel for panel in panels if panel.benchmark == benchmark],
            )
        )
    return document(title, told, sections)


def document(title: str, told: Mapping[str, str], sections: Sequence[Section]) -> str:
    """The text of a page: settings by name, then its sections."""
    parts = [f"<h1>{html.escape(title)}</h1>", "<dl>"]
    for key, value in told.items():
        parts.append(f"<dt>{html.escape(key)}</dt><dd>{html.escape(value)}</dd>")
    parts.append("</dl>")
    for one in sections:
        parts.append(f"<h2>{html.escape(one.title)}</h2>")
        parts.append(f"<p>{html.escape(one.about)}</p>")
        parts += [f'<p class="problem">{html.escape(line)}</p>' for line in one.problems]
        for heading, content in one.tables:
            parts += [f"<h3>{html.escape(heading)}</h3>", _table(content)]
        if one.curves is not None:
            parts.append(_image(one.curves, f"Curves of {one.title}"))
        for panel in one.panels:
            caption = f"<figcaption>{html.escape(panel.caption)}</figcaption>"
            picture = _image(panel.png, panel.caption)
            parts.append(f'<figure>{caption}<div class="wide">{picture}</div></figure>')
    body = "\n".join(parts)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head>\n"
        f"<body>\n{body}\n</body></html>\n"
    )


def problem_lines(markdown: str) -> list[str]:
    """A Markdown list of warnings as plain lines; none where empty."""
    return markdown.replace("**", "").removeprefix("- ").split("\n- ") if markdown else []


def _image(png: bytes, text: str) -> str:
    content = base64.b64encode(png).decode()
    return f'<img alt="{html.escape(text)}" src="data:image/png;base64,{content}">'


def _table(markdown: str) -> str:
    header, _, *rows = (
        [html.escape(cell.strip()) for cell in line.strip("|").split("|")]
        for line in markdown.splitlines()
    )
    lines = ["<table><thead><tr>", *(f"<th>{cell}</th>" for cell in header), "</tr></thead><tbody>"]
    for row in rows:
        lines.append(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>")
    return "".join([*lines, "</tbody></table>"])
