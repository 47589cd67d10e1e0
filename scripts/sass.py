#!/usr/bin/env python3
"""Reads the machine code of the kernels and writes down what decides their speed: kernels/sass.md. Needs no GPU.

    scripts/sass.py            write the tables anew
    scripts/sass.py --check    fail if that would change them

The tools are wheels, pinned by scripts/requirements-ptx.txt: the assembler that scripts/ptx.py checks with, and
NVIDIA's disassembler. What each column means stands in kernels/sass.md, above the tables.
"""

import argparse
import re
import subprocess
import sys
import tempfile
from collections import namedtuple
from pathlib import Path

from ptx import KERNELS, ROOT, fetch_tools, find_tool

PAGE = KERNELS / "sass.md"
# Below this line the page is written by this script.
MARK = "<!-- from here on written by scripts/sass.py -->\n"

# GPUs to assemble for: the module that a driver would take, and what a multiprocessor has.
Gpu = namedtuple("Gpu", "name module warps shared")
GPUS = {
    "75": Gpu("Turing", "sm75", 32, 64),
    "80": Gpu("A100", "sm80", 64, 164),
    "90": Gpu("H100, H200", "sm80", 64, 228),
    "120": Gpu("RTX 50", "sm80", 48, 100),
}
REGISTERS, WARP, BLOCK_WARPS, SCHEDULERS, VECTOR = 65536, 32, 8, 4, 16

# ---- code ----

# conditional: may be skipped, or not jump.
Instruction = namedtuple("Instruction", "text op conditional")
INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@(!?U?P\w+)\s+)?(([A-Z][\w.]*).*?)\s*;")


class Function:
    """A kernel's code as a graph: node i is instruction number i."""

    def __init__(self, lines):
        self.code, labels = [], {}
        for line in lines:
            if label := re.match(r"^(\.L_x_\d+):", line):
                labels[label[1]] = len(self.code)
            elif found := INSTRUCTION.match(line):
                guard, text, op = found.groups()
                # Newer GPUs name the predicate of a branch among its operands.
                conditional = bool(guard and guard != "PT") or bool(re.match(r"BRA\S* +!?U?P\d", text))
                self.code.append(Instruction(text, op, conditional))
        self.follow(labels)
        self.find_loops()

    def follow(self, labels):
        """`next`: where each instruction may go on."""
        self.next = [[] for _ in self.code]
        # BSYNC joins threads where the BSSY of the same barrier has said, on whichever way it was reached.
        todo, seen = [(0, {})], set()
        while todo:
            i, joins = todo.pop()
            if i in seen or i == len(self.code):
                continue
            seen.add(i)
            text, op, conditional = self.code[i].text, self.code[i].op, self.code[i].conditional
            to = [labels[name] for name in re.findall(r"\.L_x_\d+", text) if name in labels]
            barrier = re.search(r"\bB(\d+)\b", text)
            # A call of a label is a jump; of a function, it comes back.
            jumps = to if op.startswith(("BRA", "BRX", "CALL")) else []
            if op.startswith("BSSY"):
                joins = joins | {barrier[1]: to}
            elif op.startswith("BSYNC"):
                jumps = joins[barrier[1]]
            leaves = jumps or op.startswith(("EXIT", "RET"))
            ends = leaves and not conditional
            self.next[i] = list(dict.fromkeys(jumps + ([] if ends else [i + 1])))
            todo += [(to, joins) for to in self.next[i]]

    def find_loops(self):
        """`order`: topological, but for edges back to the start of a loop; `loops`: start -> its nodes."""
        done, on_path, self.order, back = set(), set(), [], []
        stack = [(0, iter(self.next[0]))]
        done.add(0), on_path.add(0)
        while stack:
            node, rest = stack[-1]
            for to in rest:
                if to in on_path:
                    back.append((node, to))
                elif to not in done:
                    done.add(to), on_path.add(to)
                    stack.append((to, iter(self.next[to])))
                    break
            else:
                stack.pop(), on_path.discard(node), self.order.append(node)
        self.order.reverse()
        self.back = set(back)
        before = {}
        for node in self.order:
            for to in self.next[node]:
                before.setdefault(to, []).append(node)
        self.loops = {}
        for end, start in back:
            inside = self.loops.setdefault(start, {start})
            todo = [end]
            while todo:
                node = todo.pop()
                if node not in inside:
                    inside.add(node)
                    todo += before.get(node, [])

    def best_path(self, start, ends, inside=None, worth=lambda _: 0):
        """From `start` to one of `ends`: the path of most worth, of these the shortest."""
        best = {start: (worth(self.code[start]), -1, None)}
        for node in self.order:
            if node not in best or (inside and node not in inside):
                continue
            value, length, _ = best[node]
            for to in self.next[node]:
                if (node, to) in self.back or (inside and to not in inside):
                    continue
                found = (value + worth(self.code[to]), length - 1, node)
                if to not in best or found[:2] > best[to][:2]:
                    best[to] = found
        node = max((end for end in ends if end in best), key=lambda end: best[end][:2])
        path = []
        while node is not None:
            path.append(node)
            node = best[node][2]
        return path[::-1]


def is_wide(instruction):
    """A load or store of 16 bytes of a tensor."""
    return bool(re.match(r"(LDG|STG)\.E\S*\.128\b", instruction.text))


def is_narrow(instruction):
    return instruction.op.startswith(("LDG", "STG")) and not is_wide(instruction)


# ---- walks ----

# path: once round the loop. once: instructions before and after it. whole: no inner loop is on the path.
Walk = namedtuple("Walk", "dtype path once whole")


def walks_of(function):
    """The loops over tensors, each by its main path: the one with most accesses of 16 bytes, of these the shortest."""

    def main_path(start):
        inside = function.loops[start]
        ends = [end for end, to in function.back if to == start]
        return function.best_path(start, ends, inside, is_wide)

    paths = {start: main_path(start) for start in function.loops}
    wide = {start: sum(is_wide(function.code[i]) for i in path) for start, path in paths.items()}
    exits = [i for i, instruction in enumerate(function.code) if instruction.op.startswith("EXIT")]

    def descend(loops):
        """Outermost first; a loop that only goes round others, as that over several tensors does, is none."""
        for start in loops:
            inner = [other for other in function.loops if other != start and other in function.loops[start]]
            outermost = [i for i in inner if not any(i in function.loops[o] for o in inner if o != i)]
            if any(wide[i] == wide[start] for i in inner):
                yield from descend(outermost)
            elif wide[start]:
                yield start

    every = list(function.loops)
    roots = [i for i in every if not any(i in function.loops[o] for o in every if o != i)]
    for start in sorted(descend(roots)):
        path = [function.code[i] for i in paths[start]]
        ways_out = {to for i in function.loops[start] for to in function.next[i]} - function.loops[start]
        before = len(function.best_path(0, [start])) - 1
        after = min(len(function.best_path(way, exits)) for way in ways_out)
        whole = not any(i in function.loops for i in paths[start][1:])
        yield Walk(dtype_of(path), path, before + after, whole)


def dtype_of(path):
    """By the conversions on a path; a copy has none. Only eight elements of whichever dtype have two vectors in a row."""
    text = " ".join(instruction.text for instruction in path)
    if "+0x10]" in text:
        return "mixed"
    if "HADD2.F32" in text:
        return "f16"
    if "0xffff0000" in text:
        return "bf16"
    return "f32" if re.search(r"\bF(ADD|MUL)\b", text) else "any"


def loads_in_flight(path):
    """Loads of 16 bytes that a path issues before it reads what one of them brought."""
    loaded, count = set(), 0
    for instruction in path:
        operands = re.findall(r"\bR(\d+)", instruction.text)
        reads = operands if instruction.op.startswith("ST") else operands[1:]
        if loaded & {int(r) for r in reads}:
            break
        if is_wide(instruction) and instruction.op.startswith("LDG"):
            count += 1
            loaded |= set(range(int(operands[0]), int(operands[0]) + 4))
    return count


# ---- tables ----


def warps_of(gpu, registers, shared, threads):
    """Warps that a multiprocessor has room for; registers are given out in eights a thread, to a quarter of it each."""
    per_warp = max(-(-registers // 8) * 8, 24) * WARP
    block = max(threads // WARP, 1)
    by_registers = REGISTERS // SCHEDULERS // per_warp * SCHEDULERS
    by_shared = gpu.shared * 1024 // (shared + 1024) * block
    return min(gpu.warps, by_registers, by_shared) // block * block


HEAD = [
    "kernel",
    "registers",
    "spills",
    "stack",
    "shared",
    "warps",
    "dtype",
    "loads",
    "stores",
    "narrower",
    "in flight",
    "KB in flight",
    "loop",
    "once",
    "B/clk",
]


def rows_of(kernel, usage, function, gpu):
    """The kernel's lines of the table: one for each of its loops over tensors."""
    warps = warps_of(gpu, usage["registers"], usage["shared"], 32 if kernel == "vote" else 256)
    first = [f"`{kernel}`", usage["registers"], usage["spills"], usage["stack"], usage["shared"], warps]
    walks = [] if kernel.endswith("strided") else list(walks_of(function))
    for walk in walks:
        loads = sum(is_wide(i) and i.op.startswith("LDG") for i in walk.path)
        stores = sum(is_wide(i) and i.op.startswith("STG") for i in walk.path)
        narrower = sum(is_narrow(i) for i in walk.path)
        flight = loads_in_flight(walk.path)
        kilobytes = warps * WARP * VECTOR * flight // 1024
        ceiling = SCHEDULERS * WARP * VECTOR * (loads + stores) / (len(walk.path) + walk.once)
        instructions = [len(walk.path), walk.once, round(ceiling)] if walk.whole else ["-"] * 3
        yield first + [walk.dtype, loads, stores, narrower, flight, kilobytes] + instructions
        first = [""] * len(first)
    if not walks:
        yield first + ["-"] * (len(HEAD) - len(first))


def assemble(module, gpu, folder):
    """What the assembler says of each kernel, and the code of each."""
    cubin = Path(folder) / "cubin"
    ptxas = find_tool("nvidia_cuda_nvcc_cu12", "bin/ptxas")
    said = subprocess.run(
        [ptxas, "-v", f"-arch=sm_{gpu}", "-o", cubin, module], capture_output=True, text=True, check=True
    ).stderr
    usage = {}
    for name, text in re.findall(r"Compiling entry function '(\w+)'(.*?)(?=Compiling entry|\Z)", said, re.DOTALL):

        def number(pattern):
            return sum(int(count) for count in re.findall(pattern, text))

        usage[name] = {
            "registers": number(r"Used (\d+) registers"),
            "spills": number(r"(\d+) bytes spill"),
            "stack": number(r"(\d+) bytes stack frame"),
            "shared": number(r"(\d+) bytes smem"),
        }
    nvdisasm = find_tool("nvidia_cuda_nvdisasm", "bin/nvdisasm")
    listing = subprocess.run([nvdisasm, "-c", cubin], capture_output=True, text=True, check=True).stdout
    parts = re.split(r"^\.text\.(\w+):\n", listing, flags=re.MULTILINE)[1:]
    return usage, {name: Function(code.splitlines()) for name, code in zip(parts[::2], parts[1::2])}


def tables():
    for number, gpu in GPUS.items():
        yield f"\n## sm_{number}: {gpu.name}\n"
        yield "| " + " | ".join(HEAD) + " |"
        yield "|---" * len(HEAD) + "|"
        for source in sorted(KERNELS.glob("*.cu")):
            module = KERNELS / "ptx" / f"{source.stem}.{gpu.module}.ptx"
            with tempfile.TemporaryDirectory() as folder:
                usage, functions = assemble(module, number, folder)
            for kernel in sorted(usage):
                for row in rows_of(kernel, usage[kernel], functions[kernel], gpu):
                    yield "| " + " | ".join(str(cell) for cell in row) + " |"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; compare")
    check = parser.parse_args().check
    fetch_tools()
    text, _, written = PAGE.read_text().partition(MARK)
    fresh = "\n".join(tables()) + "\n"
    if not check:
        PAGE.write_text(text + MARK + fresh)
    elif fresh != written:
        print(f"{PAGE.relative_to(ROOT)} is not what the kernels assemble to: run scripts/sass.py")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
