#!/usr/bin/env python3
"""What a cached pass costs here and in PyTorch, where the blocks themselves cost nothing. Prints a Markdown table.

    rivals.py LIBRARIES [--rows 4608] [--columns 3072] [--passes 200]

LIBRARIES is the folder of libdiffcache and libidle_engine. The rivals, on the same tensors and the same stream:

  hooks    diffusers' own, if it is installed
  eager    the operations of those hooks, without the hooks
  compiled the same by torch.compile

Without a GPU all of it runs on the CPU, to try the script.
"""

import argparse
import ctypes
import statistics
import sys
import time
from pathlib import Path

import torch

try:
    import diffusers_hooks
except ImportError as error:
    print(f"rivals.py: without diffusers' hooks: {error}", file=sys.stderr)
    diffusers_hooks = None

# In relation to any change of the tensors below.
ALWAYS_COMPUTE, ALWAYS_SKIP = 1e-9, 1e9
REPEAT = 7
NO_LIMITS = "warmup_steps=0,last_steps=0,max_consecutive=none,max_error=none,max_gain=none,max_age=none"


class Tensors:
    """What goes into the first block, what comes out of it and out of the last: in turn one and the other."""

    def __init__(self, device, rows, columns):
        def tensor():
            return torch.randn(1, rows, columns, device=device, dtype=torch.bfloat16)

        self.x, self.fronts, self.outs = tensor(), [tensor(), tensor()], [tensor(), tensor()]


# ---- diffcache ----


def load_libraries(folder):
    ctypes.CDLL(str(folder / "libdiffcache.so"), mode=ctypes.RTLD_GLOBAL)
    library = ctypes.CDLL(str(folder / "libidle_engine.so"))
    library.idle_open.restype = ctypes.c_void_p
    library.idle_open.argtypes = [ctypes.c_char_p, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    library.idle_close.argtypes = [ctypes.c_void_p]
    library.idle_blocks.argtypes = [ctypes.c_void_p] * 5
    library.idle_layer.argtypes = [ctypes.c_void_p] * 3
    library.idle_seconds_waited.argtypes = [ctypes.c_void_p]
    library.idle_seconds_waited.restype = ctypes.c_double
    library.dc_last_error.restype = ctypes.c_char_p
    return library


class Diffcache:
    """One cache. `passes` counts from when it was opened."""

    def __init__(self, library, tensors, options):
        self.library, self.tensors, self.passes, self.skips = library, tensors, 0, 0
        on_cuda = tensors.x.is_cuda
        self.stream = torch.cuda.current_stream().cuda_stream if on_cuda else None
        self.engine = library.idle_open(options.encode(), on_cuda, *tensors.x.shape[1:])
        if not self.engine:
            raise SystemExit(f"{options}: {library.dc_last_error().decode()}")

    def check(self, result):
        if result < 0:
            raise SystemExit(self.library.dc_last_error().decode())
        self.passes += 1
        self.skips += result

    def blocks(self, step):
        t = self.tensors
        tensors = (t.x, t.fronts[step % 2], t.outs[0])
        self.check(self.library.idle_blocks(self.engine, *(tensor.data_ptr() for tensor in tensors), self.stream))

    def layer(self, step):
        out = self.tensors.outs[step // 2 % 2]
        self.check(self.library.idle_layer(self.engine, out.data_ptr(), self.stream))

    def waited(self):
        return self.library.idle_seconds_waited(self.engine) / self.passes

    def close(self):
        self.library.idle_close(self.engine)


# ---- their operations ----


def residual_and_change(x, front, earlier):
    residual = front - x
    return residual, (residual - earlier).abs().mean() / earlier.abs().mean()


def difference(out, front):
    return out - front


def total(tail, front):
    return tail + front


def quotients(out, earlier):
    return out, (out - earlier) / 2


def series(value, slope):
    return torch.zeros_like(value) + value * 1.0 + slope * 1.0


class Operations:
    """The hooks' arithmetic. `compiler` is applied to each function."""

    def __init__(self, tensors, compiler):
        self.tensors = tensors
        self.change, self.difference, self.total = map(compiler, (residual_and_change, difference, total))
        self.quotients, self.series = compiler(quotients), compiler(series)
        self.residual, self.tail = self.slope, self.value = tensors.outs

    def blocks(self, threshold):
        def one_pass(step):
            t = self.tensors
            front = t.fronts[step % 2]
            residual, change = self.change(t.x, front, self.residual)
            if change.item() > threshold:
                self.residual, self.tail = residual, self.difference(t.outs[0], front)
            else:
                self.total(self.tail, front)

        return one_pass

    def layer(self, step):
        if step % 2 == 0:
            self.value, self.slope = self.quotients(self.tensors.outs[step // 2 % 2], self.value)
        else:
            self.series(self.value, self.slope)


# ---- timing ----


def wait():
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def seconds_of(one_pass, passes):
    for step in range(20):
        one_pass(step)
    times = []
    for _ in range(REPEAT):
        wait()
        start = time.perf_counter()
        for step in range(passes):
            one_pass(step)
        wait()
        times.append((time.perf_counter() - start) / passes)
    return statistics.median(times)


def cases(tensors):
    """What it is; the diffcache options, whether they are for blocks, what share they skip; the three rivals."""
    eager, compiled = Operations(tensors, lambda f: f), Operations(tensors, torch.compile)

    def first_block(what, threshold, share):
        hooks = diffusers_hooks and diffusers_hooks.first_block_cache(tensors, threshold)
        options = f"fbcache,threshold={threshold:g},{NO_LIMITS}"
        return what, options, True, share, (hooks, eager.blocks(threshold), compiled.blocks(threshold))

    yield first_block("FBCache, pass computed: measure, decide, keep", ALWAYS_COMPUTE, 0)
    yield first_block("FBCache, pass skipped: measure, decide, restore", ALWAYS_SKIP, 1)
    hooks = diffusers_hooks and diffusers_hooks.taylorseer(tensors)
    options = "taylorseer,every=2,warmup_steps=2,order=1"
    rivals = (hooks, eager.layer, compiled.layer)
    yield "TaylorSeer of order 1, a layer, every second pass computed", options, False, 0.5, rivals


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("libraries", type=Path)
    parser.add_argument("--rows", type=int, default=4608)
    parser.add_argument("--columns", type=int, default=3072)
    parser.add_argument("--passes", type=int, default=200)
    arguments = parser.parse_args()
    library = load_libraries(arguments.libraries.resolve())
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tensors = Tensors(device, arguments.rows, arguments.columns)
    waits = []

    def diffcache(options, for_blocks, share):
        cache = Diffcache(library, tensors, options)
        seconds = seconds_of(cache.blocks if for_blocks else cache.layer, arguments.passes)
        if abs(cache.skips / cache.passes - share) > 0.05:  # the first passes always compute
            raise SystemExit(f"{options}: skipped {cache.skips} of {cache.passes} passes")
        waits.append((options, cache.waited()))
        cache.close()
        return seconds

    versions = f"torch {torch.__version__}, diffusers {diffusers_hooks.VERSION if diffusers_hooks else 'not there'}"
    print(f"{arguments.rows} x {arguments.columns} in bf16, {versions}. ", end="")
    print("Microseconds of a pass whose blocks take no time; in brackets how many times diffcache's.\n")
    print("| what | diffcache | decided a pass ahead | diffusers' hooks | eager | torch.compile |")
    print("|---|---|---|---|---|---|")
    for what, options, for_blocks, share, rivals in cases(tensors):
        own = diffcache(options, for_blocks, share)
        ahead = f"{1e6 * diffcache(options + ',lagged=1', True, share):.1f}" if for_blocks else ""
        words = []
        for rival in rivals:
            seconds = rival and seconds_of(rival, arguments.passes)
            words.append(f"{1e6 * seconds:.1f} ({seconds / own:.1f})" if rival else "")
        print(f"| {what} | {1e6 * own:.1f} | {ahead} | {' | '.join(words)} |", flush=True)
    print("\nOf that, waiting for the device's decision:\n\n| options | us a pass |\n|---|---|")
    for options, seconds in waits:
        print(f"| `{options}` | {1e6 * seconds:.1f} |")


if __name__ == "__main__":
    if torch.cuda.is_available():
        with torch.no_grad(), torch.cuda.stream(torch.cuda.Stream()):
            main()
    else:
        with torch.no_grad():
            main()
