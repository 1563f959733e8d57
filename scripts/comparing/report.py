"""The report of a comparison: comparison.json, three PNGs and one HTML page that needs nothing beside it."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from rl.aggregates import MIN_PAIRS, Estimate
from rl.durable import atomic_write_json
from scripts.comparing.analysis import ALL, METRICS, analyse
from scripts.comparing.comparison import Comparison, Entry
from scripts.comparing.figures import draw

HERE = Path(__file__).resolve().parent


def write_report(comparison: Comparison, folder: Path) -> list[Path]:
    """Write comparison.json, the pictures and report.html into `folder`; returns their paths."""
    analysis = analyse(comparison)
    folder.mkdir(parents=True, exist_ok=True)
    data = folder / "comparison.json"
    atomic_write_json(data, {**comparison, "analysis": plain(analysis)})
    pictures = draw(comparison, analysis, folder)
    page = folder / "report.html"
    page.write_text(render(comparison, analysis, pictures), encoding="utf-8")
    return [page, data, *pictures]


def render(comparison: Comparison, analysis: Mapping[str, Any], pictures: list[Path]) -> str:
    """The page, with its pictures inside it."""
    environment = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"thousands": lambda n: f"{n / 1e3:,.0f} k", "changes": changes_text}
    images = {path.stem: base64.b64encode(path.read_bytes()).decode() for path in pictures}
    return environment.get_template("page.html.j2").render(
        comparison=comparison,
        analysis=analysis,
        images=images,
        metrics=METRICS,
        all=ALL,
        findings=findings(analysis),
        min_pairs=MIN_PAIRS,
        failures=[cell for cell in comparison["cells"] if cell["failure"] or cell["earlier_failures"]],
    )


def findings(analysis: Mapping[str, Any]) -> list[str]:
    """The pairs that the seeds tell apart, over all settings, in sentences; or that there are none."""
    pairs = _overall(analysis["improvement"])
    arms = list(pairs)
    found = [
        f"{arm} ends above {other} on the same seed with probability {pairs[arm][other]}"
        for arm in arms
        for other in arms
        if arm != other and is_above(pairs[arm][other])
    ]
    if found:
        return found
    num = max((len(arms) * (len(arms) - 1)) // 2, 0)
    return [
        f"none of the {num} pairs is told apart by these seeds" if num != 1 else "the pair is not told apart"
    ]


def is_above(estimate: Estimate) -> bool:
    """Whether an interval of a probability of improvement lies above one half."""
    return estimate.low is not None and estimate.low > 0.5


def _overall(views: Mapping[str, Any]) -> Mapping[str, Any]:
    return views[ALL] if ALL in views else next(iter(views.values()))


def changes_text(entry: Entry | list[list[str]]) -> str:
    """Changed fields as `field=value`."""
    changes = entry["changes"] if isinstance(entry, dict) else entry
    return ", ".join(f"{field}={value}" for field, value in changes)


def plain(value: Any) -> Any:
    """`value` as JSON has it: an Estimate becomes an object without empty fields."""
    if isinstance(value, Estimate):
        numbers = {"value": value.value, "low": value.low, "high": value.high}
        return numbers | ({"reason": value.reason} if value.reason else {})
    if isinstance(value, Mapping):
        return {name: plain(inner) for name, inner in value.items()}
    return [plain(inner) for inner in value] if isinstance(value, list | tuple) else value


def summary(comparison: Comparison) -> str:
    """The scores as lines of a terminal, by setting and over all of them."""
    analysis = analyse(comparison)
    lines = []
    for metric, words in METRICS.items():
        lines.append(f"{words}, interquartile mean with 95 % interval")
        for view, estimates in analysis["scores"][metric].items():
            lines.append(f"  {'all settings' if view == ALL else view}")
            lines += [f"    {arm:<24} {estimate}" for arm, estimate in estimates.items()]
    lines += ["paired probability of improvement", *(f"  {text}" for text in findings(analysis))]
    lines += [f"WARNING: {text}" for text in analysis["warnings"]]
    return "\n".join(lines)
