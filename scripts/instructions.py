#!/usr/bin/env python3
"""Instructions of each kind of call, counted by valgrind's callgrind and compared with tests/instructions/table.tsv.

    scripts/instructions.py PREFIX            compare: fails where a call takes more than the table says
    scripts/instructions.py PREFIX --write    write the table anew

PREFIX holds an installed library. Two runs of tests/instructions/calls.c, one with more rounds than the other, are
subtracted, so that neither the start nor the first passes count. The count does not depend on the machine's speed or
load; it does on the compilers and on libc, whence the tolerance: with libc's other variants of memcpy and memset (set by
GLIBC_TUNABLES) a call that touches no tensor takes up to 6 % more, `create and destroy` most of all.
"""
import argparse
import os
import platform
import re
import subprocess
import sys
import tempfile
from pathlib import Path

SOURCE = Path(__file__).resolve().parent.parent
FOLDER = SOURCE / "tests" / "instructions"
TABLE = FOLDER / "table.tsv"
HEAD = "call\tinstructions"

FEW, MANY = 20, 120
# Share by which a call may exceed the table, and instructions that are never worth a failure.
TOLERANCE, SLACK = 0.08, 6


def build(prefix: Path, folder: Path) -> Path:
    """The program, against the installed library."""
    program = folder / "calls"
    library = prefix / "lib"
    # Not -O2, which may merge functions that are counted apart.
    subprocess.run([os.environ.get("CC", "cc"), "-std=c99", "-O1", "-Wall", "-Wextra", "-Werror",
                    f"-I{prefix / 'include'}", str(FOLDER / "calls.c"), "-o", str(program),
                    f"-L{library}", f"-Wl,-rpath,{library}", "-ldiffcache"], check=True)
    return program


def run(program: Path, rounds: int, out: Path) -> str:
    """Counts into a file; what the program prints."""
    command = ["valgrind", "-q", "--tool=callgrind", f"--callgrind-out-file={out}", "--compress-strings=no",
               "--compress-pos=no", str(program), str(rounds)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def inclusive(out: Path) -> dict:
    """Instructions of each function with all that it calls."""
    costs, callee, called = {}, None, False
    for line in out.read_text().splitlines():
        if line.startswith("cfn="):
            # A compiler may have made a copy of the function: name.constprop.0.
            callee = line[4:].split(".")[0]
        elif line.startswith("calls="):
            called = True
        elif called:
            costs[callee] = costs.get(callee, 0) + int(line.split()[1])
            called = False
    return costs


def measure(prefix: Path) -> dict:
    """Instructions of one call of each kind."""
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        program = build(prefix, folder)
        few, many = folder / "few", folder / "many"
        run(program, FEW, few)
        kinds = [line.split("\t") for line in run(program, MANY, many).splitlines()]
        few, many = inclusive(few), inclusive(many)
    per_round = lambda function: (many[function] - few[function]) / (MANY - FEW)
    return {what: round(per_round(function) / int(units)) for function, units, what in kinds}


def read_table() -> dict:
    lines = TABLE.read_text().splitlines()
    rows = [line.split("\t") for line in lines if line and not line.startswith("#") and line != HEAD]
    return {what: int(count) for what, count in rows}


def write_table(counts: dict) -> None:
    comment = "# Written by scripts/instructions.py --write, which says how they are counted."
    rows = [f"{what}\t{count}" for what, count in counts.items()]
    TABLE.write_text("\n".join([comment, HEAD, *rows, ""]))


def compare(counts: dict, table: dict) -> bool:
    """Prints both; true if no call takes more than it may."""
    good = True
    print(f"{'instructions':>12} {'table':>9}  call")
    for what in [*counts, *(row for row in table if row not in counts)]:
        now, then = counts.get(what), table.get(what)
        if now is None or then is None:
            note, good = "not in the table" if then is None else "not counted any more", False
        elif now > then * (1 + TOLERANCE) + SLACK:
            note, good = f"MORE, by {100 * (now / then - 1):.1f} %", False
        elif now < then * (1 - TOLERANCE) - SLACK:
            note = f"less, by {100 * (1 - now / then):.1f} %: the table can be tightened"
        else:
            note = ""
        print(f"{'-' if now is None else now:>12} {'-' if then is None else then:>9}  {what:<52} {note}".rstrip())
    return good


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prefix", type=Path, help="where the library is installed")
    parser.add_argument("--write", action="store_true", help="write the table anew")
    given = parser.parse_args()
    counts = measure(given.prefix.resolve())
    if given.write:
        write_table(counts)
    return 0 if compare(counts, read_table()) else 1


if __name__ == "__main__":
    sys.exit(main())
