#!/usr/bin/env python3
"""Draws docs/scaling.svg from the points that benches/scaling.rs measured.

    scaling_chart.py POINTS.tsv CHART.svg

A line of POINTS holds panel, line, x, median, lower and upper quartile, parted by tabs.
"""

import math
import sys
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

WIDTH, MARGIN, GAP = 960, 24, 40
INK, FAINT, PAPER = "#24292f", "#d8dee4", "#ffffff"
BLUE, ORANGE = "#0969da", "#bc4c00"


@dataclass
class Panel:
    name: str
    title: str
    x_title: str
    y_title: str
    base: int  # of the logarithmic x axis
    tick: object  # x as text
    colours: dict = field(default_factory=dict)  # of a line: colour, dashes


def size(x):
    power = int(math.log2(x))
    return f"{2 ** (power % 10)} {['B', 'KiB', 'MiB', 'GiB'][power // 10]}"


def count(x):
    return f"{x:,}".replace(",", " ")


DASHES = "7 4"
PANELS = [
    Panel("size", "A check and a skip of one bf16 tensor", "size of the tensor",
          "bandwidth over that of a plain loop, 1 thread", 4, size,
          {"check, 1 thread": (BLUE, ""), "check, 2 threads": (BLUE, DASHES),
           "skip, 1 thread": (ORANGE, ""), "skip, 2 threads": (ORANGE, DASHES)}),
    Panel("branches", "Cost of a pass by branches", "branches", "cost over that with 1", 2, count,
          {"a pass": (BLUE, "")}),
    Panel("caches", "Cost of a pass by caches on one thread", "caches", "cost over that with 1", 10, count,
          {"a pass after the other": (BLUE, ""), "all passes open at once": (ORANGE, "")}),
    Panel("threads", "Passes a second by threads, a cache each", "threads", "gain over plain arithmetic's", 2, count,
          {"passes": (BLUE, "")}),
    Panel("passes", "Cost of a pass by its place in the run", "passes of the run", "cost over the 1000th's", 10, count,
          {"a pass": (BLUE, "")}),
]


def read(path):
    """Points of each panel's lines: x, median, low, high."""
    points = {}
    for line in Path(path).read_text().splitlines():
        panel, name, *numbers = line.split("\t")
        x, median, low, high = map(float, numbers)
        points.setdefault(panel, {}).setdefault(name, []).append((int(x), median, low, high))
    return points


def text(x, y, words, anchor="middle", size=12, weight="normal", turn=""):
    turn = f' transform="rotate(-90 {x:.1f} {y:.1f})"' if turn else ""
    return (f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" font-weight="{weight}"{turn}>'
            f"{escape(words)}</text>")


def line(x1, y1, x2, y2, colour, width=1.0):
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" stroke-width="{width}"/>'


def steps(most):
    """Ticks of a y axis from 0 that show `most`."""
    step = next(step for step in (0.1, 0.2, 0.25, 0.5, 1, 2, 5, 10, 20) if most / step <= 6)
    return [k * step for k in range(math.ceil(most / step - 1e-9) + 1)]


def draw(panel, lines, left, top, width, height):
    """One panel in its rectangle."""
    x0, y0, x1, y1 = left + 58, top + 56, left + width - 14, top + height - 44
    xs = sorted({point[0] for points in lines.values() for point in points})
    ticks = steps(max([1.2] + [point[1] for points in lines.values() for point in points]))
    log = lambda x: math.log(x, panel.base)
    span = max(log(xs[-1]) - log(xs[0]), 1e-9)
    across = lambda x: x0 + 12 + (log(x) - log(xs[0])) / span * (x1 - x0 - 24)
    up = lambda y: y1 - min(y, ticks[-1]) / ticks[-1] * (y1 - y0)
    yield text(left + 8, top + 18, panel.title, "start", 14, "600")
    for y in ticks:
        yield line(x0, up(y), x1, up(y), INK if y in (0, 1) else FAINT, 1.2 if y == 0 else 1)
        yield text(x0 - 8, up(y) + 4, f"{y:g}", "end", 11)
    for x in xs if len(xs) <= 11 else xs[::2]:
        yield text(across(x), y1 + 16, panel.tick(x), size=11)
    yield text((x0 + x1) / 2, y1 + 34, panel.x_title)
    yield text(left + 18, (y0 + y1) / 2, panel.y_title, turn="yes")
    legend = x0
    for name, (colour, dashes) in panel.colours.items():
        points = lines.get(name, [])
        band = [(x, high) for x, _, _, high in points] + [(x, low) for x, _, low, _ in reversed(points)]
        place = lambda pairs: " ".join(f"{across(x):.1f},{up(y):.1f}" for x, y in pairs)
        dash = f' stroke-dasharray="{dashes}"' if dashes else ""
        yield f'<polygon points="{place(band)}" fill="{colour}" fill-opacity="0.12"/>'
        yield (f'<polyline points="{place((x, median) for x, median, _, _ in points)}" fill="none" stroke="{colour}" '
               f'stroke-width="2"{dash}/>')
        for x, median, _, _ in points:
            yield f'<circle cx="{across(x):.1f}" cy="{up(median):.1f}" r="2.8" fill="{colour}"/>'
        if len(panel.colours) > 1:
            yield (f'<line x1="{legend:.1f}" y1="{top + 36}" x2="{legend + 28:.1f}" y2="{top + 36}" stroke="{colour}" '
                   f'stroke-width="2"{dash}/>')
            yield text(legend + 34, top + 40, name, "start")
            legend += 54 + 6.4 * len(name)


def chart(points):
    half, tall, low = (WIDTH - 2 * MARGIN - GAP) / 2, 380, 270
    yield from draw(PANELS[0], points[PANELS[0].name], MARGIN, MARGIN, WIDTH - 2 * MARGIN, tall)
    for k, panel in enumerate(PANELS[1:]):
        left, top = MARGIN + k % 2 * (half + GAP), MARGIN + tall + 16 + k // 2 * (low + 16)
        yield from draw(panel, points[panel.name], left, top, half, low)
    bottom = MARGIN + tall + 2 * (low + 16) + 24
    yield text(MARGIN + 8, bottom, "Medians; the bands hold the middle half of the repeats. All numbers are ratios in one run.",
               "start", 11)


def main():
    points = read(sys.argv[1])
    height = 2 * MARGIN + 380 + 2 * (270 + 16) + 16
    body = "\n".join(chart(points))
    Path(sys.argv[2]).write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" '
        f'font-family="system-ui, Helvetica, Arial, sans-serif" fill="{INK}">\n'
        f'<rect width="{WIDTH}" height="{height}" fill="{PAPER}"/>\n{body}\n</svg>\n')


if __name__ == "__main__":
    main()
