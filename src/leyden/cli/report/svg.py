"""Charts as inline SVG, whose colours are CSS variables of the page: lines, points, a matrix of counts."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

__all__ = ["NUM_COLOURS", "Line", "line_chart", "matrix_chart", "scatter_chart", "thin_out"]

Points = list[tuple[float, float]]

NUM_COLOURS = 7  # --c0 .. --c6 in style.css
DASHES = ("", "6 3", "2 3", "8 3 2 3")  # colour alone does not tell lines apart
WIDTH, HEIGHT = 420, 250  # in units that are about as large as pixels: texts stay readable on a phone
MAX_CELLS = 32  # classes whose squares say what they are
LEFT, RIGHT, TOP, BOTTOM = 54, 10, 10, 40


@dataclass(frozen=True)
class Line:
    """One line of a chart.

    Attributes:
        name: for the legend.
        points: x, ascending, and y; values that are not finite leave a gap.
        band: x, least and greatest value of what a point stands for; drawn behind the line.
        colour: which of the colours, and dashes where there are more lines than colours.
        faint: whether it stands behind the others.
        steps: whether a value holds until the next.
    """

    name: str
    points: Points
    colour: int
    faint: bool = False
    steps: bool = False
    band: Sequence[tuple[float, float, float]] = ()


def thin_out(points: Points, limit: int) -> tuple[Points, list[tuple[float, float, float]]]:
    """Means over stretches, if there are more points than ``limit``, and least and greatest value of each.

    Returns:
        At most ``limit`` points, and x, least and greatest value of their stretches; no stretches for few points.
    """
    if len(points) <= limit:
        return points, []
    means, band = [], []
    for number in range(limit):
        part = points[number * len(points) // limit : (number + 1) * len(points) // limit]
        values = [value for _, value in part if math.isfinite(value)]
        if not values:
            means.append((part[0][0], math.nan))
            continue
        x = points[0][0] if number == 0 else points[-1][0] if number == limit - 1 else part[len(part) // 2][0]
        means.append((x, sum(values) / len(values)))
        band.append((x, min(values), max(values)))
    return means, band


def line_chart(
    lines: Sequence[Line], *, label: str, x_label: str, y_label: str, x_range: tuple[float, float], log: bool = False
) -> str:
    """Draws lines, with a legend if there are several.

    Args:
        lines: with at least one finite point between them.
        label: what the chart shows, for screen readers.
        x_label: name of the horizontal axis.
        y_label: name and unit of the vertical axis.
        x_range: ends of the horizontal axis.
        log: whether the vertical scale may be logarithmic: it is where positive values span much.
    """
    finite = [y for line in lines for _, y in line.points if math.isfinite(y)]
    finite += [y for line in lines for _, *ends in line.band for y in ends]
    low, high = min(finite), max(finite)
    log = log and low > 0 and high / low > 50
    x_axis = _Axis(*x_range, LEFT, WIDTH - RIGHT)
    y_axis = _Axis(low, high, HEIGHT - BOTTOM, TOP, log=log, padded=True)
    drawn = []
    for line in lines:
        if line.band:
            edge = [(x, top) for x, _, top in line.band] + [(x, bottom) for x, bottom, _ in reversed(line.band)]
            corners = " ".join(f"{x_axis.place(x):.1f},{y_axis.place(y):.1f}" for x, y in edge)
            drawn.append(f'<polygon class="band" style="fill:var(--c{line.colour % NUM_COLOURS})" points="{corners}"/>')
    for line in sorted(lines, key=lambda line: not line.faint):
        dash = DASHES[line.colour // NUM_COLOURS % len(DASHES)]
        style = f'class="line{" faint" if line.faint else ""}" style="stroke:var(--c{line.colour % NUM_COLOURS})"'
        style += f' stroke-dasharray="{dash}"' if dash else ""
        for part in _without_gaps(line.points):
            places = [(x_axis.place(x), y_axis.place(y)) for x, y in (_as_steps(part) if line.steps else part)]
            points = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
            if len(part) == 1:
                x, y = places[0]
                drawn.append(
                    f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" style="fill:var(--c{line.colour % NUM_COLOURS})"/>'
                )
            drawn.append(f'<polyline {style} data-name="{escape(line.name)}" points="{points}"/>')
    y_label += ", log scale" if log else ""
    data = f'data-x="{x_axis.low!r},{x_axis.high!r}" data-y="{y_axis.low!r},{y_axis.high!r}" data-log="{int(log)}"'
    data += f' data-box="{LEFT},{WIDTH - RIGHT},{TOP},{HEIGHT - BOTTOM}"'  # for script.js
    frame = _frame(x_axis, y_axis, x_label, y_label)
    svg = _svg(label, frame + "".join(drawn) + '<line class="cursor"/>', f'class="chart" {data}')
    readout = '<output class="readout" aria-live="off"></output>'
    return svg + (_legend(lines) if len(lines) > 1 or lines[0].faint else "") + readout


def scatter_chart(groups: Sequence[Line], *, label: str, x_label: str, y_label: str) -> str:
    """Draws points on equal axes, with the diagonal on which both are the same.

    Args:
        groups: points by colour, with at least one finite point between them.
        label: what the chart shows, for screen readers.
        x_label: name and unit of the horizontal axis.
        y_label: name and unit of the vertical axis.
    """
    finite = [value for group in groups for point in group.points for value in point if math.isfinite(value)]
    size = HEIGHT + 110
    x_axis = _Axis(min(finite), max(finite), LEFT, WIDTH - RIGHT, padded=True)
    y_axis = _Axis(min(finite), max(finite), size - BOTTOM, TOP, padded=True)
    ends = [(axis.place(axis.low), axis.place(axis.high)) for axis in (x_axis, y_axis)]
    drawn = [
        f'<line class="diagonal" x1="{ends[0][0]:.1f}" y1="{ends[1][0]:.1f}" x2="{ends[0][1]:.1f}" '
        f'y2="{ends[1][1]:.1f}"/>'
    ]
    for group in groups:
        drawn += [
            f'<circle class="dot" cx="{x_axis.place(x):.1f}" cy="{y_axis.place(y):.1f}" r="3" '
            f'style="fill:var(--c{group.colour % NUM_COLOURS})"/>'
            for x, y in group.points
            if math.isfinite(x) and math.isfinite(y)
        ]
    svg = _svg(label, _frame(x_axis, y_axis, x_label, y_label, size) + "".join(drawn), 'class="chart"', size)
    return svg + (_legend(groups) if len(groups) > 1 else "")


def matrix_chart(counts: Sequence[Sequence[int]], names: Sequence[str], *, label: str) -> str:
    """Draws a confusion matrix: rows are true classes, columns predicted ones, shades the share of the row.

    Args:
        counts: ``[C, C]``.
        names: of the classes.
        label: what the chart shows, for screen readers.
    """
    num_classes = len(counts)
    longest = max(map(len, names))
    shown = [name if len(name) <= 12 else name[:11] + "…" for name in names]
    margin = 26 + min(longest, 12) * 6.2
    cell = (WIDTH - margin - 4) / num_classes
    font = min(12.0, cell * 0.42)
    size = cell * num_classes
    parts = [f'<rect class="cell" x="{margin:.1f}" y="{margin:.1f}" width="{size:.1f}" height="{size:.1f}"/>']
    shades: dict[str, list[str]] = {}  # of many classes: squares of a shade are one path, or the page becomes large
    for row, line in enumerate(counts):
        total = sum(line)
        for column, count in enumerate(line):
            if not count:
                continue
            x, y = margin + column * cell, margin + row * cell
            opacity = 0.15 + 0.85 * count / total
            fill = f"fill:var(--c{int(row != column)});fill-opacity:{opacity:.1f}"
            if num_classes > MAX_CELLS:
                shades.setdefault(fill, []).append(f"M{x:.1f} {y:.1f}h{cell:.1f}v{cell:.1f}h-{cell:.1f}z")
                continue
            title = f"{names[row]} taken for {names[column]}: {count} of {total} ({count / total:.1%})"
            parts.append(
                f'<rect class="fill" x="{x:.1f}" y="{y:.1f}" width="{cell:.1f}" height="{cell:.1f}" style="{fill}">'
                f"<title>{escape(title)}</title></rect>"
            )
            if num_classes <= 20:
                strong = " strong" if opacity > 0.5 else ""
                parts.append(
                    f'<text class="count{strong}" x="{x + cell / 2:.1f}" y="{y + cell / 2 + font * 0.36:.1f}" '
                    f'font-size="{font:.1f}" text-anchor="middle">{count}</text>'
                )
    parts += [f'<path style="{fill}" d="{"".join(squares)}"/>' for fill, squares in shades.items()]
    for number in range(1, num_classes if num_classes <= 20 else 0):
        place = margin + number * cell
        parts.append(
            f'<path class="grid" d="M{margin:.1f} {place:.1f}h{size:.1f}M{place:.1f} {margin:.1f}v{size:.1f}"/>'
        )
    every = math.ceil(num_classes / 32)  # names that would not fit are left out
    for number, name in enumerate(shown):
        if number % every:
            continue
        middle = margin + (number + 0.5) * cell
        height = min(12.0, max(7.0, cell * every * 0.8))
        parts.append(
            f'<text x="{margin - 5:.1f}" y="{middle + height * 0.36:.1f}" font-size="{height:.1f}" text-anchor="end">'
            f"{escape(name)}</text>"
        )
        turned = longest > 2 or every > 1
        where = (
            f'transform="translate({middle + height * 0.36:.1f} {margin - 5:.1f}) rotate(-90)" text-anchor="start"'
            if turned
            else f'x="{middle:.1f}" y="{margin - 5:.1f}" text-anchor="middle"'
        )
        parts.append(f'<text {where} font-size="{height:.1f}">{escape(name)}</text>')
    center = margin + num_classes * cell / 2
    parts.append(f'<text class="axis" x="{center:.1f}" y="12" text-anchor="middle">predicted class</text>')
    parts.append(
        f'<text class="axis" transform="translate(12 {center:.1f}) rotate(-90)" text-anchor="middle">true class</text>'
    )
    return _svg(label, "".join(parts), 'class="matrix"', int(margin + num_classes * cell) + 4)


# ---- axes


class _Axis:
    """Places values between two ends."""

    def __init__(
        self, low: float, high: float, start: float, end: float, *, log: bool = False, padded: bool = False
    ) -> None:
        if log:
            low, high = math.log10(low), math.log10(high)
        if high <= low:
            margin = abs(low) * 0.1 or 1.0
            low, high = low - margin, high + margin
        elif padded:
            low, high = low - 0.04 * (high - low), high + 0.04 * (high - low)
        self.low, self.high, self.start, self.end, self.log = low, high, start, end, log

    def place(self, value: float) -> float:
        """Where a value stands."""
        value = math.log10(value) if self.log and value > 0 else value
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Round values between the ends."""
        if self.log:
            decades = range(math.floor(self.low), math.ceil(self.high) + 1)
            every = max(1, math.ceil(len(decades) / 7))
            factors = (1, 2, 5) if self.high - self.low < 2 else (1, 3) if self.high - self.low < 3 else (1,)
            found = [factor * 10.0**decade for decade in decades if decade % every == 0 for factor in factors]
            return [tick for tick in found if self.low <= math.log10(tick) <= self.high]
        rough = (self.high - self.low) / 5
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
        first = math.ceil(self.low / step - 1e-9)
        return [number * step for number in range(first, math.floor(self.high / step + 1e-9) + 1)]


def _tick_text(value: float) -> str:
    size = abs(value)
    for limit, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if size >= limit:
            return f"{value / (1e3 if letter == 'k' else limit):.6g}{letter}"
    if 0 < size < 1e-3:
        mantissa, exponent = f"{value:.2e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    return f"{value:.6g}"


def _frame(x_axis: _Axis, y_axis: _Axis, x_label: str, y_label: str, height: int = HEIGHT) -> str:
    parts = []
    for tick in y_axis.ticks():
        y = y_axis.place(tick)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 5}" y="{y + 4:.1f}" text-anchor="end">{_tick_text(tick)}</text>')
    bottom = height - BOTTOM
    for tick in x_axis.ticks():
        x = x_axis.place(tick)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{bottom}"/>')
        anchor = "end" if x > WIDTH - RIGHT - 12 else "middle"
        parts.append(f'<text x="{x:.1f}" y="{bottom + 15}" text-anchor="{anchor}">{_tick_text(tick)}</text>')
    center = (LEFT + WIDTH - RIGHT) / 2
    middle = (TOP + bottom) / 2
    parts.append(f'<text class="axis" x="{center:.0f}" y="{height - 6}" text-anchor="middle">{escape(x_label)}</text>')
    parts.append(
        f'<text class="axis" transform="translate(12 {middle:.0f}) rotate(-90)" text-anchor="middle">'
        f"{escape(y_label)}</text>"
    )
    return "".join(parts)


def _svg(label: str, content: str, attributes: str, height: int = HEIGHT) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
    return f'{head}aria-label="{escape(label)}" {attributes}>{content}</svg>'


def _legend(lines: Sequence[Line]) -> str:
    items = []
    for line in lines:
        dash = DASHES[line.colour // NUM_COLOURS % len(DASHES)]
        faint = " faint" if line.faint else ""
        items.append(
            f'<li><svg viewBox="0 0 24 8" aria-hidden="true"><line class="line{faint}" x1="0" x2="24" y1="4" y2="4" '
            f'style="stroke:var(--c{line.colour % NUM_COLOURS})"{f" stroke-dasharray={dash!r}" if dash else ""}/></svg>'
            f"{escape(line.name)}</li>"
        )
    return f'<ul class="legend">{"".join(items)}</ul>'


def _without_gaps(points: Points) -> list[Points]:
    parts: list[Points] = [[]]
    for point in points:
        if math.isfinite(point[1]):
            parts[-1].append(point)
        elif parts[-1]:
            parts.append([])
    return [part for part in parts if part]


def _as_steps(points: Points) -> Points:
    steps = [points[0]]
    for x, y in points[1:]:
        steps += [(x, steps[-1][1]), (x, y)]
    return steps
