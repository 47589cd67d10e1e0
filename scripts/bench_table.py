#!/usr/bin/env python3
"""The table that `make bench` closes with: what the benchmark programs measured, beside what is asked for and the rival.

    bench_table.py ROWS [TABLE.md]

ROWS has a line for each figure, its columns parted by tabs: section, figure, median, lower and upper quartile, unit ("x" for
a ratio), target (">=0.9", "<=150" or nothing), rival. A figure without a median was not measured, and the rival says why.
"""

import os
import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass
class Row:
    section: str
    figure: str
    median: str
    low: str
    high: str
    unit: str
    target: str
    rival: str

    def verdict(self):
        if not self.target:
            return ""
        if not self.median:
            return "not measured"
        bound, value = float(self.target[2:]), float(self.median)
        return "met" if (value >= bound if self.target.startswith(">=") else value <= bound) else "NOT MET"

    def cells(self):
        """As they are shown."""
        unit = "x" if self.unit == "x" else f" {self.unit}"
        value = f"{number(self.median)}{unit} ({number(self.low)} to {number(self.high)})" if self.median else ""
        target = self.target.replace(">=", "at least ").replace("<=", "at most ")
        return [self.figure, value, target and target + unit, self.verdict(), self.rival]


def number(text):
    """Three digits, or what stands before the point."""
    value = float(text)
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:#.3g}"


def read(path):
    lines = Path(path).read_text().splitlines() if Path(path).exists() else []
    rows = [Row(*line.split("\t")) for line in lines]
    sections = {}
    for row in rows:
        sections.setdefault(row.section, []).append(row)
    return rows, sections


def closing(rows):
    verdicts = [row.verdict() for row in rows if row.target]
    missing = verdicts.count("not measured")
    words = f"{verdicts.count('met')} of {len(verdicts)} met"
    return words + (f", {missing} not measured" if missing else "")


def machine():
    """What the figures were measured on."""
    cpu = {}
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []:
        key, _, value = line.partition(":")
        cpu.setdefault(key.strip(), value.strip())
    caches = sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*"))
    sizes = [f"L{(c / 'level').read_text().strip()} {(c / 'size').read_text().strip()}" for c in caches
             if (c / "type").read_text().strip() != "Instruction"]
    cores = len(os.sched_getaffinity(0))
    return ", ".join([cpu.get("model name", "a CPU that does not say its name"), f"{cores} threads", *sizes])


HEADINGS = ["figure", "median (quartiles)", "target", "", "rival"]


def print_text(rows, sections):
    table = [HEADINGS] + [row.cells() for row in rows]
    widths = [max(len(line[k]) for line in table) for k in range(len(HEADINGS))]
    line = lambda cells: "  ".join(cell.ljust(width) for cell, width in zip(cells, widths)).rstrip()
    print(machine())
    for section, members in sections.items():
        print(f"\n{line([section.upper(), *HEADINGS[1:]])}")
        for row in members:
            print(line(row.cells()))
    print(f"\n{closing(rows)}")


def markdown(rows, sections):
    yield f"# Figures\n\nOn {machine()}. {closing(rows)}."
    for section, members in sections.items():
        yield f"\n## {section}\n"
        yield f"| {' | '.join(HEADINGS)} |\n|{'---|' * len(HEADINGS)}"
        for row in members:
            yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row.cells())} |"


def main():
    rows, sections = read(sys.argv[1])
    print_text(rows, sections)
    if len(sys.argv) > 2:
        Path(sys.argv[2]).write_text("\n".join(markdown(rows, sections)) + "\n")


if __name__ == "__main__":
    main()
