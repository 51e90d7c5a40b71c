"""Pictures of a finished sweep: rate against distortion, every trial across the swept keys, and what mattered."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator

from pipeline.tune.config import Range, Scalar, Values
from pipeline.tune.objectives import Direction, Objectives, undominated
from pipeline.tune.results import BASELINE, Candidate
from pipeline.tune.space import Space

COLOURS = {"completed": "tab:blue", "stopped": "tab:gray", BASELINE: "tab:orange"}
BEST = "tab:red"
FAR = 3.0  # a figure further from the best than so many times the median is, is drawn at the edge
PLATE = {"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 0.6}  # behind a label that lines may cross


def rate_distortion(found: Sequence[Candidate], best: str) -> Figure:
    """Distortion against rate of every candidate, and the front of the finished ones; along the dotted line the
    negative ELBO equals that of the best. A family without a rate has its candidates side by side."""
    figure = Figure(figsize=(6, 4.5), layout="constrained")
    axes = figure.add_subplot()
    shown = [each for each in found if "distortion_nats" in each.figures]
    has_rate = all("rate_nats" in each.figures for each in shown)
    points = {each.name: (each.figures["rate_nats"] if has_rate else i, each.figures["distortion_nats"])
              for i, each in enumerate(shown)}  # fmt: skip
    for status, colour in COLOURS.items():
        of_status = [points[each.name] for each in shown if each.status == status]
        if of_status:
            axes.scatter(*zip(*of_status, strict=True), color=colour, label=status, zorder=2)
    if has_rate:
        _front(axes, {each.name: points[each.name] for each in shown if each.is_finished})
    axes.scatter(*points[best], s=160, facecolors="none", edgecolors=BEST, label=f"best ({best})", zorder=3)
    axes.axline(points[best], slope=-1 if has_rate else 0, color=BEST, linestyle=":", linewidth=1, zorder=1)
    axes.set(
        xlabel="rate [nats]" if has_rate else "trial (this family has no rate)",
        ylabel="distortion [nats]",
        title="Validation split",
    )
    axes.legend()
    return figure


def parallel_coordinates(found: Sequence[Candidate], space: Space, objectives: Objectives, best: str) -> Figure:
    """One line a candidate, across an axis for each swept key and one for the first objective, which colours it."""
    name = objectives.names[0]
    shown = [each for each in found if math.isfinite(each.figures.get(name, math.nan))]
    scales = [_scale(values, [each.values[key] for each in shown]) for key, values in space.items()]
    scales.append(_figure_scale([each.figures[name] for each in shown], objectives.directions[0]))
    figure = Figure(figsize=(max(6.0, 1.0 + 1.7 * len(scales)), 4.8), layout="constrained")
    axes = figure.add_subplot()
    for i, each in enumerate(shown):
        shift = (i + 0.5) / len(shown) - 0.5
        row: list[Scalar] = [*(each.values[key] for key in space), each.figures[name]]
        heights = [scale.height(value) + shift * scale.gap for scale, value in zip(scales, row, strict=True)]
        _line(axes, heights, each, best=each.name == best, colour=colormaps["viridis"](heights[-1]))
    for x, scale in enumerate(scales):
        _axis(axes, x, scale)
    axes.set(xlim=(-0.45, len(scales) - 0.8), ylim=(-0.05, 1.05), xticks=range(len(scales)), yticks=[])
    axes.set_xticklabels([*space, name])
    axes.tick_params(axis="x", length=0)
    axes.spines[:].set_visible(False)
    axes.set_title(f"Validation split; the best {name} at the top")
    _legend(axes, shown, best)
    return figure


def importance_bars(shares: Mapping[str, Mapping[str, float] | None], why: str = "") -> Figure:
    """A bar for each key and objective: the share of the variance that the key explains; or the reason for none."""
    known = {name: keys for name, keys in shares.items() if keys}
    keys = list(next(iter(known.values()), {}))[::-1]
    figure = Figure(figsize=(6, max(1.8, 1.2 + 0.45 * len(keys) * max(1, len(known)))), layout="constrained")
    axes = figure.add_subplot()
    if not known:
        axes.text(0.5, 0.5, why or "all trials gave the same", ha="center", va="center")
        axes.set_axis_off()
        return figure
    height = 0.8 / len(known)
    for i, (name, of) in enumerate(known.items()):
        places = np.arange(len(keys)) - 0.4 + height * (len(known) - i - 0.5)
        bars = axes.barh(places, [of[key] for key in keys], height * 0.9, label=name)
        axes.bar_label(bars, fmt="{:.2f}", padding=3)
    axes.set(yticks=np.arange(len(keys)), yticklabels=keys, xlim=(0, 1.12), xlabel="share of the variance explained")
    if len(known) > 1:
        axes.legend()
    else:
        axes.set_title(next(iter(known)))
    axes.spines[["top", "right"]].set_visible(False)
    return figure


@dataclass(frozen=True)
class _Scale:
    """Where values lie on an axis of height 1.

    Attributes:
        ticks: height and label of some of them.
        gap: how far apart lines of the same value may be drawn.
    """

    height: Callable[[Scalar], float]
    ticks: Sequence[tuple[float, str]]
    gap: float = 0.0


def _scale(values: Values, seen: Sequence[Scalar]) -> _Scale:
    """Of a swept key: a list's values evenly; those of a range by their size, or by its logarithm."""
    if not isinstance(values, Range):
        return _even([*values, *seen])
    numbers = [values.low, values.high, *(value for value in seen if not isinstance(value, str))]
    low, high = min(numbers), max(numbers)
    turned: Callable[[float], float] = math.log if values.log else float
    locator = LogLocator(subs=(1, 2, 5)) if values.log else MaxNLocator(5, integer=values.integer)

    def height(value: Scalar) -> float:
        return (turned(float(value)) - turned(low)) / (turned(high) - turned(low))

    at = [float(tick) for tick in locator.tick_values(low, high) if low <= tick <= high]
    return _Scale(height, [(height(tick), f"{tick:g}") for tick in at])


def _even(values: Sequence[Scalar]) -> _Scale:
    """Numbers by their order, words in the order given."""
    distinct = list(dict.fromkeys(values))
    if not any(isinstance(value, str) for value in distinct):
        distinct.sort()
    heights = {value: (i + 0.5) / len(distinct) for i, value in enumerate(distinct)}
    ticks = [(height, f"{value:g}" if isinstance(value, float) else str(value)) for value, height in heights.items()]
    return _Scale(heights.__getitem__, ticks, gap=0.5 / len(distinct))


def _figure_scale(values: Sequence[float], direction: Direction) -> _Scale:
    """Of the figure: the best at the top; the few that are far worse than half of the others at the bottom."""
    costs = [-value if direction == "max" else value for value in values]
    best, median = min(costs), float(np.median(costs))
    far = best + FAR * (median - best)
    worst = max((cost for cost in costs if cost <= far), default=best)
    sign, span = (-1 if direction == "max" else 1), (worst - best) or 1.0

    def height(value: Scalar) -> float:
        return max(0.0, 1 - (sign * float(value) - best) / span)

    at = [sign * (best + part * span) for part in ((0, 0.25, 0.5, 0.75, 1) if worst > best else (0,))]
    labels = [f"{value:.4g}" for value in at]
    if max(costs) > worst:
        labels[-1] += " and worse"
    return _Scale(height, [(height(value), label) for value, label in zip(at, labels, strict=True)])


def _line(axes: Axes, heights: Sequence[float], each: Candidate, *, best: bool, colour: tuple[float, ...]) -> None:
    """A smooth line, level at each axis, so that lines which cross there can be told apart."""
    steps = np.linspace(0, 1, 30)
    ease = steps * steps * (3 - 2 * steps)
    x = np.concatenate([steps + i for i in range(len(heights) - 1)] or [np.zeros(1)])
    y = np.concatenate([a + (b - a) * ease for a, b in pairwise(heights)] or [np.array(heights[:1])])
    drawn: dict[str, Any] = {"color": colour, "linewidth": 1.4, "alpha": 0.85, "zorder": 2}
    if each.status == "stopped":
        drawn |= {"linewidth": 0.8, "alpha": 0.55, "linestyle": "--", "zorder": 1}
    if each.status == BASELINE:
        drawn |= {"color": COLOURS[BASELINE], "linewidth": 2.2, "alpha": 1, "zorder": 3}
    if best:
        drawn |= {"linewidth": 3, "alpha": 1, "zorder": 4} | ({} if each.status == BASELINE else {"color": BEST})
    axes.plot(x, y, **drawn)


def _axis(axes: Axes, x: int, scale: _Scale) -> None:
    axes.axvline(x, color="black", linewidth=0.8, zorder=5)
    for height, label in scale.ticks:
        axes.plot([x - 0.02, x], [height, height], color="black", linewidth=0.8, zorder=5)
        axes.text(x - 0.04, height, label, ha="right", va="center", fontsize=8, zorder=6, bbox=PLATE)


def _front(axes: Axes, points: Mapping[str, tuple[float, float]]) -> None:
    """Steps along the candidates that none beats in both."""
    front = sorted(points[name] for name in undominated(points))
    axes.step(*zip(*front, strict=True), where="post", color="black", linewidth=0.8, label="Pareto front", zorder=1)


def _legend(axes: Axes, found: Sequence[Candidate], best: str) -> None:
    """Which line is which; colours of the others are told by the last axis."""
    styles: dict[str, dict[str, Any]] = {
        "completed": {"color": colormaps["viridis"](0.6)},
        "stopped": {"color": "tab:gray", "linestyle": "--"},
        BASELINE: {"color": COLOURS[BASELINE], "linewidth": 2.2},
    }
    there = [status for status in styles if any(each.status == status for each in found)]
    lines = [Line2D([], [], label=status, **styles[status]) for status in there]
    if best != BASELINE:
        lines.append(Line2D([], [], color=BEST, linewidth=3, label=f"best ({best})"))
    axes.legend(handles=lines, loc="upper center", bbox_to_anchor=(0.5, -0.09), ncols=4, frameon=False)
