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


def page(
    title: str,
    told: Mapping[str, str],
    found: Sequence[Mapping[str, Any]],
    curves: Mapping[str, bytes],
    panels: Sequence[Panel],
) -> str:
    """The text of the page.

    Args:
        told: settings to show, by name.
        found: what ``MethodMetrics.compute`` gave, of all methods and benchmarks.
        curves: PNG by benchmark.
        panels: best, median and worst images.
    """
    parts = [f"<h1>{html.escape(title)}</h1>", "<dl>"]
    for key, value in told.items():
        parts.append(f"<dt>{html.escape(key)}</dt><dd>{html.escape(value)}</dd>")
    parts.append("</dl>")
    for benchmark in dict.fromkeys(one["benchmark"] for one in found):
        rows = [one for one in found if one["benchmark"] == benchmark]
        parts.append(f"<h2>{html.escape(benchmark)}</h2>")
        parts.append(f"<p>{html.escape(report.about(rows[0]))}</p>")
        about = report.problems(rows)
        if about:
            lines = about.replace("**", "").removeprefix("- ").split("\n- ")
            parts += [f'<p class="problem">{html.escape(line)}</p>' for line in lines]
        for target, name in TARGETS.items():
            ranked = [one for one in rows if target in one["targets"]]
            if ranked:
                parts += [f"<h3>{name}</h3>", _table(report.ranking_table(ranked, target))]
        stated = [one for one in rows if "nll" in one]
        if stated:
            parts.append("<h3>Stated distributions, without any alignment</h3>")
            parts.append(_table(report.likelihood_table(stated)))
        if benchmark in curves:
            parts.append(_image(curves[benchmark], f"Curves of {benchmark}"))
        for panel in panels:
            if panel.benchmark == benchmark:
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
