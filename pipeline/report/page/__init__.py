"""A run as one HTML file that opens offline and asks nothing of any network.

Charts are uPlot's (1.6.32, MIT, 53 kB of script and style, laid beside this file with its licence): ECharts and plotly
are twenty times that, and what is no line over time here is a table, which every reader and every eye can use.
"""

import base64
import gzip
import hashlib
from pathlib import Path

import orjson

from pipeline.report.page.data import gather
from pipeline.report.page.rows import Inputs, packed
from pipeline.report.reading import Answers

_HERE = Path(__file__).parent


def page(directory: Path, *, text: bool = True, inputs: Inputs | None = None) -> str:
    """The page of a run; without `text` it has no prompt, answer, id of a row, message or path.

    `inputs` are what the rows were asked about. Raises `RunStateError` for a directory that is none, or damaged.
    """
    answers = Answers(directory)
    data, rows = gather(directory, answers, text=text), b""
    if text:
        made = packed(answers, inputs)
        data["shown"], rows = made.told, made.content
    script = "\n".join(_asset(name) for name in ("uplot-1.6.32.min.js", "charts.js", "rows.js", "page.js"))
    allowed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    parts = {
        "@CSP@": f"default-src 'none'; script-src 'sha256-{allowed}'; style-src 'unsafe-inline'; base-uri 'none'",
        "@STYLE@": f"{_asset('uplot-1.6.32.min.css')}\n{_asset('page.css')}",
        "@DATA@": base64.b64encode(gzip.compress(orjson.dumps(data), 6)).decode(),
        "@ROWS@": base64.b64encode(rows).decode(),
        "@SCRIPT@": script,
    }
    html = _asset("page.html")
    for mark, value in parts.items():
        html = html.replace(mark, value)
    return html


def _asset(name: str) -> str:
    return (_HERE / name).read_text("utf-8")
