"""The pictures of a comparison: learning curves, scores with every seed, who improves on whom."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

from rl.aggregates import bootstrap
from scripts.comparing.analysis import ALL, METRICS, curve_of
from scripts.comparing.comparison import Comparison, finished

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Okabe and Ito's palette, which colour-blind readers tell apart (jfly.uni-koeln.de/color), without its
# yellow, too pale for a line.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LINES = ("-", "--", ":", "-.")
RISE = 0.17
"""How far an interval stands above the middle of its row, and its dots below."""
NUM_POINTS = 41
"""Places of a learning curve at which seeds are summed up."""
STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "axes.titlesize": 9,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "figure.constrained_layout.use": True,
    "savefig.dpi": 160,
}


def draw(comparison: Comparison, analysis: dict[str, Any], folder: Path) -> list[Path]:
    """Write curves.png, scores.png and improvement.png into `folder`."""
    figures = {"curves": curves, "scores": score_dots, "improvement": improvement}
    paths = []
    with plt.rc_context(STYLE):
        for name, figure_of in figures.items():
            figure = figure_of(comparison, analysis)
            paths.append(folder / f"{name}.png")
            figure.savefig(paths[-1])
            plt.close(figure)
    return paths


def curves(comparison: Comparison, analysis: dict[str, Any]) -> Figure:
    """Success by sampled tokens, a panel a setting: each arm's interquartile mean, with its 95 % band.

    The band is a pointwise bootstrap over seeds; with too few of them there are the seeds' own lines instead.
    """
    settings = _labels(comparison["settings"])
    figure, axes = plt.subplots(
        1, len(settings), figsize=(0.6 + 4.6 * len(settings), 3.3), sharey=True, squeeze=False
    )
    for axis, setting in zip(axes[0], settings, strict=True):
        ends = []
        for number, arm in enumerate(_labels(comparison["arms"])):
            drawn = _arm_curve(axis, comparison, setting, arm, _look(number))
            if drawn is not None:
                ends.append((drawn, arm, COLORS[number % len(COLORS)]))
        _label_ends(axis, ends, comparison["budget_tokens"])
        threshold = analysis["threshold"][setting]["success"]
        if threshold is not None:
            axis.axhline(threshold, color="0.75", linewidth=0.7, zorder=0)
            axis.annotate(
                f"threshold {threshold:.2f}",
                (0, threshold),
                xytext=(3, -2),
                textcoords="offset points",
                va="top",
                color="0.5",
                fontsize=7,
            )
        axis.set(
            title=setting, xlabel="sampled tokens, thousands", xlim=(0, comparison["budget_tokens"] / 1e3)
        )
    axes[0][0].set_ylabel("success on held-out tasks")
    return figure


def _arm_curve(
    axis: Axes, comparison: Comparison, setting: str, arm: str, look: dict[str, Any]
) -> float | None:
    """Draw one arm; returns where its line ends, None where it has none."""
    cells = finished(comparison, setting, arm)
    if not cells:
        return None
    end = min(comparison["budget_tokens"], *(cell["num_tokens"] for cell in cells))
    tokens = np.linspace(0, end, NUM_POINTS)
    at = np.stack([curve_of(cell).at(tokens) for cell in cells])  # (num_seeds, NUM_POINTS)
    points = [bootstrap({setting: column}, num=2000) for column in at.T]
    middle = [point.value for point in points if point.value is not None]
    if points[0].reason:
        axis.plot(tokens / 1e3, at.T, linewidth=0.6, alpha=0.5, **look)
    else:
        low, high = ([getattr(point, bound) for point in points] for bound in ("low", "high"))
        axis.fill_between(tokens / 1e3, low, high, color=look["color"], alpha=0.12, linewidth=0)
    axis.plot(tokens / 1e3, middle, linewidth=1.6, **look)
    return middle[-1]


def _label_ends(axis: Axes, ends: Sequence[tuple[float, str, str]], budget: float) -> None:
    """Each arm's name at the end of its line, moved apart where lines end together."""
    low, high = axis.get_ylim()
    gap = (high - low) * 0.055
    ordered = sorted(ends)
    places = [end for end, _, _ in ordered]
    for _ in range(100):  # neighbours push each other apart until none overlaps
        for i in range(len(places) - 1):
            overlap = gap - (places[i + 1] - places[i])
            if overlap > 0:
                places[i] -= overlap / 2
                places[i + 1] += overlap / 2
    for place, (end, arm, color) in zip(places, ordered, strict=True):
        axis.annotate(
            arm,
            (budget / 1e3, end),
            xytext=(1.03, place),
            textcoords=axis.get_yaxis_transform(),
            color=color,
            va="center",
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": color, "linewidth": 0.5, "shrinkA": 0, "shrinkB": 0},
        )
    axis.set_ylim(low, high)


def score_dots(comparison: Comparison, analysis: dict[str, Any]) -> Figure:
    """Both scores: a row an arm, a dot a seed, a bar the interquartile mean with its 95 % interval."""
    arms = _labels(comparison["arms"])
    views = list(analysis["scores"]["final"])
    figure, axes = plt.subplots(
        len(METRICS),
        len(views),
        figsize=(0.9 + 2.9 * len(views), 1.3 + 0.56 * len(arms)),
        sharey=True,
        sharex="row",
        squeeze=False,
    )
    for row, (metric, words) in zip(axes, METRICS.items(), strict=True):
        for axis, view in zip(row, views, strict=True):
            for place, arm in enumerate(arms):
                look = COLORS[place % len(COLORS)]
                seeds = _seed_scores(comparison, analysis, metric, view, arm)
                axis.plot(
                    seeds, _spread(place, len(seeds)), "o", color=look, markersize=3.2, alpha=0.6, mew=0
                )
                estimate = analysis["scores"][metric][view][arm]
                if estimate.low is not None:
                    axis.plot([estimate.low, estimate.high], [place - RISE] * 2, color=look, linewidth=2)
                if estimate.value is not None:
                    axis.plot(
                        estimate.value, place - RISE, "|", color=look, markersize=8, markeredgewidth=2.2
                    )
            axis.set_xlabel(words)
            axis.set_title("all settings" if view == ALL else view)
            axis.grid(axis="x", color="0.92", linewidth=0.7)
            axis.set_axisbelow(True)
            axis.tick_params(axis="y", length=0)
            axis.spines["left"].set_visible(False)
        row[0].set_yticks(range(len(arms)), arms)
        row[0].set_ylim(len(arms) - 0.5, -0.5)
    return figure


def _seed_scores(
    comparison: Comparison, analysis: dict[str, Any], metric: str, view: str, arm: str
) -> list[float]:
    inside = [name for name in _labels(comparison["settings"]) if view in (ALL, name)]
    return [score for name in inside for score in analysis["seeds"][metric][name][arm]]


def _spread(place: int, num: int) -> np.ndarray:
    """A band of dots below the bar of row `place`, so that equal scores stay visible."""
    return place + RISE + (np.linspace(-0.1, 0.1, num) if num > 1 else np.zeros(num))


def improvement(comparison: Comparison, analysis: dict[str, Any]) -> Figure:
    """P(row ends above column) on the same seed; bold where the 95 % interval leaves out one half."""
    arms = _labels(comparison["arms"])
    view = ALL if ALL in analysis["improvement"] else _labels(comparison["settings"])[0]
    pairs = analysis["improvement"][view]
    size = 1.6 + 0.8 * len(arms)
    figure, axis = plt.subplots(figsize=(size, 0.72 * size))
    table = [[np.nan if a == b else _or_nan(pairs[a][b].value) for b in arms] for a in arms]
    axis.imshow(table, cmap="PuOr_r", vmin=-0.35, vmax=1.35, aspect="auto")
    for i, arm in enumerate(arms):
        for j, other in enumerate(arms):
            estimate = None if arm == other else pairs[arm][other]
            if estimate is None or estimate.value is None:
                continue
            apart = estimate.low is not None and not estimate.low <= 0.5 <= estimate.high
            interval = "" if estimate.low is None else f"\n{estimate.low:.2f} to {estimate.high:.2f}"
            axis.text(
                j,
                i,
                f"{estimate.value:.2f}{interval}",
                ha="center",
                va="center",
                fontsize=7,
                fontweight="bold" if apart else "normal",
            )
    axis.set_xticks(range(len(arms)), arms, rotation=30, ha="left")
    axis.set_yticks(range(len(arms)), arms)
    axis.xaxis.tick_top()
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    axis.set_xlabel("probability that the row ends above the column, same seed")
    return figure


def _labels(entries: Sequence[dict[str, Any]]) -> list[str]:
    return [entry["label"] for entry in entries]


def _look(number: int) -> dict[str, Any]:
    return {
        "color": COLORS[number % len(COLORS)],
        "linestyle": LINES[number // len(COLORS) % len(LINES)],
    }


def _or_nan(value: float | None) -> float:
    return float("nan") if value is None else value
