"""Charts as SVG that stands inside an HTML page, takes its fonts, and needs nothing else."""

import io
import re
from collections.abc import Sequence

import numpy as np
from markupsafe import Markup

from mathmill.evaluation.intervals import wilson
from mathmill.evaluation.results import Evaluated, Group, Score, groups_of

COLOURS = ["#2f6fdd", "#d9652b", "#1c9a78", "#8e5bd0", "#b8860b", "#c2417f", "#4b5563", "#0e8fa8"]
STYLES = {"pass@k": (0, (4, 2)), "majority@k": "solid"}
_INK, _GRID = "#3d4451", "#e6e9ef"


def curve_chart(results: Sequence[Evaluated]) -> Markup | None:
    """Accuracy against k of one benchmark: majority@k and pass@k with their intervals, the greedy share as a mark."""
    drawn = [result for result in results if result.curves]
    if not drawn:
        return None
    figure, axes = _figure(6.2, 3.5)
    ends: list[tuple[float, str, str]] = []
    most = max(result.num_samples for result in drawn)
    for number, result in enumerate(drawn):
        for place, curve in enumerate(result.curves):
            colour = COLOURS[(number if len(drawn) > 1 else 1 - place) % len(COLOURS)]
            ks = range(1, len(curve.shares) + 1)
            axes.fill_between(ks, 100 * curve.low, 100 * curve.high, color=colour, alpha=0.12, linewidth=0)
            axes.plot(ks, 100 * curve.shares, color=colour, linewidth=2, linestyle=STYLES[curve.metric])
            if len(drawn) == 1 or curve.metric == "majority@k":
                name = curve.metric if len(drawn) == 1 else _short(result.label)
                ends.append((100 * float(curve.shares[-1]), name, colour))
        greedy = result.score("greedy")
        if greedy is not None:
            colour = COLOURS[number % len(COLOURS)] if len(drawn) > 1 else _INK
            axes.plot([1], [100 * greedy.share], marker="D", markersize=6, color=colour, zorder=5, clip_on=False)
            if len(drawn) == 1:
                axes.annotate(
                    f"greedy {100 * greedy.share:.1f}",
                    (1, 100 * greedy.share),
                    (8, -12),
                    textcoords="offset points",
                    fontsize=9,
                    color=_INK,
                )
    axes.set_xscale("log", base=2)
    ticks = [2**power for power in range(most.bit_length()) if 2**power <= most]
    ticks = [tick for tick in ticks if tick == ticks[-1] or tick * 1.5 < most] + ([most] if most not in ticks else [])
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.set_xlim(1, most)
    low, high = axes.get_ylim()
    axes.set_ylim(max(low, 0), min(high, 100.5))
    axes.set_xlabel("samples a problem, k")
    axes.set_ylabel("problems solved, %")
    _label_ends(axes, ends, most)
    return _svg(figure, "Accuracy against the number of samples", results[0].name)


def _label_ends(axes, ends: list[tuple[float, str, str]], most: int) -> None:
    """Names at the right ends of the curves, moved apart where they would touch."""
    low, high = axes.get_ylim()
    gap, last = (high - low) * 0.075, None
    for value, name, colour in sorted(ends):
        at = value if last is None else max(value, last + gap)
        last = at
        text = f"{name}  {value:.1f}"
        axes.annotate(
            text, (most, at), (7, -3), textcoords="offset points", color=colour, fontsize=9.5, annotation_clip=False
        )


def group_chart(results: Sequence[Evaluated], kind: str) -> Markup | None:
    """Bars of one benchmark by level (or subject, …): the best of our metrics of every model, with Wilson's intervals.

    They stand side by side, or lie below one another where there are many groups.
    """
    groups = [group for group in groups_of(results[0].problems) if group.kind == kind]
    what, bars = _bars(results)
    if not groups or not bars:
        return None
    lie = len(groups) > 6
    figure, axes = _figure(6.2, 0.55 + 0.19 * len(groups) * (len(bars) + 0.9) if lie else 3.2)
    thick = 0.8 / len(bars)
    for number, (name, score) in enumerate(bars):
        shares = np.array([score.values[group.places].mean() for group in groups])
        ends = [
            wilson(share * len(group.places), len(group.places)) for share, group in zip(shares, groups, strict=True)
        ]
        errors = 100 * np.array([shares - [end.low for end in ends], [end.high for end in ends] - shares])
        places = np.arange(len(groups)) + (number - (len(bars) - 1) / 2) * thick
        look = {
            "color": COLOURS[number % len(COLOURS)],
            "alpha": 0.9,
            "label": name,
            "error_kw": {"elinewidth": 1, "ecolor": _INK, "capsize": 0, "alpha": 0.65},
        }
        if lie:
            axes.barh(places, 100 * shares, height=0.92 * thick, xerr=errors, **look)
        else:
            axes.bar(places, 100 * shares, width=0.92 * thick, yerr=errors, **look)
    _name_groups(axes, groups, what, lie)
    if len(bars) > 1:
        look = {"frameon": False, "fontsize": 9, "borderaxespad": 0.2, "handlelength": 1}
        columns = 1 if sum(len(name) for name, _ in bars) > 50 else len(bars)
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=columns, **look)
    return _svg(figure, f"Problems solved by {kind}", results[0].name)


def _name_groups(axes, groups: Sequence[Group], what: str, lie: bool) -> None:
    """Groups, with their number of problems, on one axis; per cent on the other, of `what` metric."""
    if lie:
        axes.set_yticks(range(len(groups)), [f"{group.name[:34]}  ({len(group.places):,})" for group in groups])
        axes.invert_yaxis()
        axes.set_xlim(0, 100)
        axes.set_xlabel(f"problems solved{what}, %")
        axes.grid(axis="y", visible=False)
        axes.grid(axis="x", visible=True, color=_GRID, linewidth=0.8)
    else:
        axes.set_xticks(range(len(groups)), [f"{group.name}\n{len(group.places):,}" for group in groups])
        axes.set_ylim(0, 100)
        axes.set_ylabel(f"problems solved{what}, %")


def _bars(results: Sequence[Evaluated]) -> tuple[str, list[tuple[str, Score]]]:
    """One model: greedy and majority. Several: each by the metric that all of them have, which is told first."""
    if len(results) == 1:
        count = results[0].num_samples
        found = [(metric, results[0].score(metric)) for metric in ("greedy", *([f"majority@{count}"] if count else []))]
        return "", [(name, score) for name, score in found if score is not None]
    count = min(result.num_samples for result in results)
    metric = f"majority@{count}" if count else "greedy"
    scores = [(one.label, score) for one in results if (score := one.score(metric)) is not None]
    return f", {metric}", [(_short(label), score) for label, score in scores]


def _short(label: str) -> str:
    """A model's name as it fits into a chart."""
    return label if len(label) <= 44 else f"{label[:43]}…"


def _figure(width: float, height: float):
    """Inches. Made without pyplot, which would keep every figure."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color("#c4cad4")
    axes.tick_params(length=0, labelsize=9, labelcolor=_INK, pad=5)
    axes.xaxis.label.set(size=9.5, color=_INK)
    axes.yaxis.label.set(size=9.5, color=_INK)
    axes.grid(axis="y", color=_GRID, linewidth=0.8)
    axes.grid(axis="x", visible=False)
    axes.set_axisbelow(True)
    return figure, axes


def _svg(figure, title: str, name: str) -> Markup:
    """The figure as an SVG element that scales with the page, text as text in the page's font.

    Several stand in one page, so their ids differ by title and name, and those that nothing refers to are left out.
    """
    import matplotlib

    stream = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": f"{title} {name}"}):
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r' id="[\w.]+_\d+"', "", text)
    text = re.sub(r"'DejaVu Sans'[^;\"]*", "inherit", text)
    text = re.sub(r"font: ([\d.]+px) inherit", r"font-size: \1", text)
    text = re.sub(r'<svg ([^>]*?)width="[^"]*" ', r"<svg \1", text, count=1)
    text = re.sub(r'<svg ([^>]*?)height="[^"]*" ', r"<svg \1", text, count=1)
    return Markup(text.replace("<svg ", f'<svg role="img" aria-label="{title}" class="chart" ', 1))
