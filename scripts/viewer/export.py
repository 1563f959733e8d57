"""The page with one trajectory or one step inside it: a single file that needs no server and no network."""

from __future__ import annotations

import json
from base64 import b64encode
from hashlib import sha256
from pathlib import Path
from typing import Any

from scripts.viewer.api import Answers, metric_words
from scripts.viewer.index import Row
from scripts.viewer.present import row_json, steps
from scripts.viewer.run import ViewedRun
from scripts.viewer.server import SCRIPTS, STATIC


class NothingToExport(ValueError):
    """The run has no such step or trajectory."""


class NotWritten(OSError):
    """The file could not be written; the message says why."""


def chosen_rows(run: ViewedRun, *, step: int | None, trajectory: int | None) -> list[Row]:
    """The rows of a step (training and evaluation), or the one on a line. Raises NothingToExport."""
    if trajectory is not None:
        return [run.index.row(trajectory)]
    rows = [row for row in run.index.rows if row.step == step]
    if not rows:
        known = sorted({row.step for row in run.index.rows})
        span = f"steps {known[0]} to {known[-1]} have" if known else "no step has"
        raise NothingToExport(f"step {step} has no recorded trajectory in {run.path}: {span} some")
    return rows


def write_export(path: Path, answers: Answers, rows: list[Row]) -> None:
    """One HTML file with the metrics of every run, and with `rows` of the first one.

    Raises NotWritten: the file exists, or cannot be written; half a file is not left.
    """
    html = export_html(answers, rows)
    try:
        file = path.open("x", encoding="utf-8")
    except FileExistsError as error:
        raise NotWritten(f"{path} exists already: give another name, or remove it first") from error
    except OSError as error:
        raise NotWritten(f"{path} cannot be written ({error.strerror})") from error
    try:
        with file:
            file.write(html)
    except OSError as error:
        path.unlink(missing_ok=True)
        raise NotWritten(f"{path} cannot be written ({error.strerror}); nothing is left of it") from error


def export_html(answers: Answers, rows: list[Row]) -> str:
    """The page's HTML with style, scripts and answers inside.

    Its policy lets the page's own scripts run, by their hashes, and nothing load.
    """
    scripts = [(STATIC / name).read_text(encoding="utf-8") for name in SCRIPTS]
    style = (STATIC / "style.css").read_text(encoding="utf-8")
    policy = (
        f"default-src 'none'; script-src {' '.join(map(_hash, scripts))}; style-src {_hash(style)}; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )
    data = _data_block(_embedded(answers, rows))
    html = (STATIC / "page.html").read_text(encoding="utf-8")
    for place, replacement in {
        "<!-- policy -->": f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
        '<link rel="stylesheet" href="/static/style.css">': f"<style>{style}</style>",
        "<!-- scripts -->": data + "".join(f"<script>{script}</script>\n" for script in scripts),
    }.items():
        assert html.count(place) == 1, f"page.html has no single {place}"
        html = html.replace(place, replacement)
    return html


def _embedded(answers: Answers, rows: list[Row]) -> dict[str, Any]:
    """URL of the server -> what it would answer. The page filters `rows` itself."""
    run = answers.runs[0]
    found: dict[str, Any] = {"/api/runs": answers.summaries(), "/api/words": metric_words()}
    for place, other in enumerate(answers.runs):
        found[f"/api/runs/{place}/metrics"] = answers.metrics(other, 0)
        found[f"/api/runs/{place}/steps"] = steps(rows) if other is run else []
        found[f"/api/runs/{place}/rows"] = [row_json(row) for row in rows] if other is run else []
    found["/api/runs/0/groups"] = [
        group
        for step, split in dict.fromkeys((row.step, row.split) for row in rows)
        for group in answers.groups(run, step, split)
    ]
    lines = {row.line for row in rows}
    for group in found["/api/runs/0/groups"]:
        group["rows"] = [row for row in group["rows"] if row["line"] in lines]
    for row in rows:
        found[f"/api/runs/0/trajectories/{row.line}"] = answers.trajectory(run, row.line)
        found[f"/api/runs/0/advantages/{row.line}"] = answers.advantages(run, row.line)
    return found


def _data_block(value: Any) -> str:
    # In a script element only "</script" and "<!--" end or change anything: without "<" there is neither.
    text = json.dumps(value, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    return f'<script type="application/json" id="embedded">{text}</script>\n'


def _hash(text: str) -> str:
    return f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'"
