"""One HTML page that needs nothing but itself: sections of text, pictures and tables; everything given is escaped."""

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass
from string import Template

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from hsic_lab.diagnostics import FAULTS

_STYLE = """
body { font: 16px/1.55 system-ui, "Segoe UI", Helvetica, Arial, sans-serif; color: #1c2024; background: #fff;
       max-width: 62rem; margin: 2.5rem auto; padding: 0 1.5rem; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 .3rem; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.4rem 0 .4rem; border-bottom: 1px solid #d9dde2; padding-bottom: .25rem; }
p { margin: .5rem 0; max-width: 48rem; } .facts, footer { color: #5a636e; font-size: .9rem; }
.verdict { border-left: .4rem solid #5a636e; background: #f4f6f8; padding: .7rem 1rem; margin: 1.2rem 0; }
.verdict b { font-size: 1.1rem; } .good { border-color: #029e73; background: #eef8f4; }
.bad { border-color: #d55e00; background: #fdf3ec; }
img { max-width: 100%; display: block; margin: .8rem 0; }
.wide { overflow-x: auto; } .wide img { max-width: none; width: max(100%, 46rem); }
table { border-collapse: collapse; font-size: .88rem; margin: .8rem 0; width: max-content; max-width: 58rem; }
th, td { text-align: left; padding: .28rem .8rem .28rem 0; border-bottom: 1px solid #e4e7eb; vertical-align: top; }
th { color: #5a636e; font-weight: 600; } td.number { font-variant-numeric: tabular-nums; white-space: nowrap; }
td.alarm { color: #b34700; font-weight: 600; }
footer { margin: 3rem 0 1rem; border-top: 1px solid #d9dde2; padding-top: .6rem; }
@media print { body { margin: 0; max-width: none; font-size: 11pt; } section, figure, tr { break-inside: avoid; } }
"""
_PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title><style>$style</style></head>
<body>
<h1>$title</h1>
<p class="facts">$facts</p>
$body
<footer>$footer</footer>
</body>
</html>
""")


@dataclass(frozen=True)
class Section:
    """A heading, paragraphs, pictures with their descriptions, and tables."""

    title: str
    paragraphs: Sequence[str]
    pictures: Sequence[tuple[Figure, str]] = ()
    tables: Sequence[pd.DataFrame] = ()


def make_page(
    title: str, facts: str, verdict: tuple[str, str, bool | None], sections: Sequence[Section], footer: str
) -> str:
    """The page's text. `verdict` is a headline, a sentence, and whether that is good (None: neither)."""
    headline, words, good = verdict
    kind = {True: " good", False: " bad", None: ""}[good]
    parts = [f'<div class="verdict{kind}"><b>{html.escape(headline)}</b><br>{html.escape(words)}</div>']
    parts += [_section(section) for section in sections]
    return _PAGE.substitute(
        title=html.escape(title), style=_STYLE, facts=html.escape(facts), body="\n".join(parts),
        footer=html.escape(footer),
    )


def _section(section: Section) -> str:
    parts = [f"<section><h2>{html.escape(section.title)}</h2>"]
    parts += [f"<p>{html.escape(words)}</p>" for words in section.paragraphs]
    for figure, words in section.pictures:
        wide = figure.get_figwidth() > 9  # of several panels: a small screen scrolls it
        picture = f'<img alt="{html.escape(words)}" src="data:image/png;base64,{_png(figure)}">'
        parts.append(f'<div class="wide">{picture}</div>' if wide else picture)
    parts += [_table(frame) for frame in section.tables]
    return "\n".join([*parts, "</section>"])


def _png(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120, bbox_inches="tight")
    plt.close(figure)
    return base64.b64encode(buffer.getvalue()).decode()


def _table(frame: pd.DataFrame) -> str:
    head = "".join(f"<th>{html.escape(str(name).replace('_', ' '))}</th>" for name in frame.columns)
    rows = ["".join(_cell(name, value) for name, value in row.items()) for row in frame.to_dict("records")]
    body = "\n".join(f"<tr>{row}</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _cell(name: str, value: object) -> str:
    if name == "pvalue" and value == 0:  # of an approximation: smaller than a float
        return '<td class="number">&lt; 1e-300</td>'
    if isinstance(value, float):
        return f'<td class="number">{"not defined" if value != value else f"{value + 0.0:.4g}"}</td>'
    if isinstance(value, int):
        return f'<td class="number">{value}</td>'
    words = html.escape(str(value).replace("_", " ") if name == "diagnostic" else str(value))
    alarm = name == "verdict" and value in FAULTS
    return f'<td class="alarm">{words}</td>' if alarm else f"<td>{words}</td>"
