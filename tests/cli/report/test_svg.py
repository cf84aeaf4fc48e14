"""Charts: places, thinning, gaps, escaping, contrast."""

import math
import re
from importlib.resources import files
from xml.etree import ElementTree

import pytest

from leyden.cli.report.svg import NUM_COLOURS, Line, line_chart, matrix_chart, scatter_chart, thin_out


def chart(lines, **arguments):
    defaults = {"label": "a", "x_label": "step", "y_label": "loss", "x_range": (0.0, 10.0)}
    return line_chart(lines, **(defaults | arguments))


def polylines(html):
    return [
        [tuple(map(float, point.split(","))) for point in points.split()]
        for points in re.findall(r'<polyline [^>]*points="([^"]*)"', html)
    ]


def texts(html):
    return re.findall(r"<text[^>]*>([^<]*)</text>", html)


def test_points_stand_where_their_values_are():
    (line,) = polylines(chart([Line("a", [(0.0, 0.0), (5.0, 50.0), (10.0, 100.0)], 0)]))
    (x0, y0), (x1, y1), (x2, y2) = line
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.11)  # half-way, to the printed digit
    assert y1 - y0 == pytest.approx(y2 - y1, abs=0.11)
    assert y2 < y0  # up is less in SVG


def test_a_logarithmic_scale_has_equal_decades():
    html = chart([Line("a", [(0.0, 0.01), (5.0, 1.0), (10.0, 100.0)], 0)], log=True)
    ((_, y0), (_, y1), (_, y2)) = polylines(html)[0]
    assert y1 - y0 == pytest.approx(y2 - y1, abs=0.11)
    assert "loss, log scale" in html
    assert {"0.01", "1", "100"} <= set(texts(html))


@pytest.mark.parametrize("points", [[(0.0, 1.0), (10.0, 40.0)], [(0.0, -1.0), (10.0, 1e6)]])
def test_the_scale_stays_linear_for_values_that_are_close_or_not_positive(points):
    assert "log scale" not in chart([Line("a", points, 0)], log=True)


@pytest.mark.parametrize("value", [0.0, 1.0, -2.5e-7, 3e12])
def test_a_constant_is_drawn(value):
    (line,) = polylines(chart([Line("a", [(0.0, value), (10.0, value)], 0)]))
    assert all(math.isfinite(number) for point in line for number in point)


def test_values_that_are_not_finite_leave_a_gap():
    points = [(0.0, 1.0), (1.0, 2.0), (2.0, math.nan), (3.0, math.inf), (4.0, 1.0), (5.0, 2.0)]
    assert [len(line) for line in polylines(chart([Line("a", points, 0)]))] == [2, 2]


def test_of_many_points_means_and_ranges_are_kept():
    points = [(float(x), math.sin(x / 50)) for x in range(100_000)]
    points[33_333] = (33_333.0, 9.0)
    points[77_777] = (77_777.0, -9.0)
    points[50_000] = (50_000.0, math.nan)
    means, band = thin_out(points, 400)  # stretches of 250
    assert len(means) == len(band) == 400
    assert [x for x, _ in means] == sorted(x for x, _ in means)
    assert (means[0][0], means[-1][0]) == (0.0, 99_999.0)
    assert means[1][1] == pytest.approx(sum(value for _, value in points[250:500]) / 250)
    assert (min(low for _, low, _ in band), max(high for _, _, high in band)) == (-9.0, 9.0)
    assert thin_out(points[:400], 400) == (points[:400], [])


def test_the_scale_holds_the_range():
    html = chart([Line("a", [(0.0, 1.0), (10.0, 1.0)], 0, band=[(0.0, 0.0, 2.0), (10.0, -3.0, 2.0)])])
    heights = [float(place.split(",")[1]) for place in re.search(r'<polygon [^>]*points="([^"]*)"', html)[1].split()]
    assert 0 < min(heights) < max(heights) < 250


def test_a_batch_size_holds_until_the_next():
    html = chart([Line("a", [(0.0, 1.0), (5.0, 2.0), (10.0, 2.0)], 0, steps=True)])
    (line,) = polylines(html)
    assert line[1] == (line[2][0], line[0][1])


def test_names_are_escaped_and_the_drawing_is_xml():
    evil = "<script>alert('1')</script>\"&"
    html = chart([Line(evil, [(0.0, 1.0), (1.0, 2.0)], 0), Line("b", [(0.0, 1.0)], 9, faint=True)], y_label=evil)
    html += matrix_chart([[1, 0], [2, 3]], [evil, "b"], label=evil)
    html += scatter_chart([Line(evil, [(0.0, 1.0)], 0)], label=evil, x_label=evil, y_label=evil)
    assert "<script" not in html
    root = ElementTree.fromstring(f"<div>{html}</div>")
    assert evil in {text.text for text in root.iter() if text.text}


def test_a_matrix_has_its_counts_and_says_which_is_which():
    html = matrix_chart([[5, 0], [2, 3]], ["cat", "dog"], label="a")
    assert texts(html)[:3] == ["5", "2", "3"]  # zeros are left out
    assert html.count("<rect") == 1 + 3
    assert "dog taken for cat: 2 of 5 (40.0%)" in html
    assert {"predicted class", "true class"} <= set(texts(html))


def test_the_diagonal_of_a_scatter_is_where_both_are_equal():
    html = scatter_chart([Line("a", [(2.0, 2.0), (0.0, 4.0)], 0)], label="a", x_label="x", y_label="y")
    x1, y1, x2, y2 = (
        float(re.search(rf'class="diagonal".*? {key}="([-\d.]+)"', html)[1]) for key in ("x1", "y1", "x2", "y2")
    )
    x, y = (float(re.search(rf'class="dot" .*?{key}="([-\d.]+)"', html)[1]) for key in ("cx", "cy"))
    assert (y - y1) / (x - x1) == pytest.approx((y2 - y1) / (x2 - x1), rel=0.01)


def luminance(colour):
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, other):
    bright, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)


def test_contrast_is_that_of_the_accessibility_guidelines():
    css = files("leyden.cli.report").joinpath("style.css").read_text()
    schemes = [dict(re.findall(r"--(\w+): (#\w{6})", block)) for block in re.findall(r":root \{(.*?)\}", css, re.S)]
    assert len(schemes) == 2
    for scheme in schemes:
        for ground in ("bg", "card"):
            for text in ("ink", "soft", "warn"):
                assert contrast(scheme[text], scheme[ground]) >= 4.5  # WCAG 2.2, 1.4.3
            for number in range(NUM_COLOURS):
                assert contrast(scheme[f"c{number}"], scheme[ground]) >= 3.0  # 1.4.11
