#!/usr/bin/env python3
"""What diffusers' hooks pay in PyTorch eager for what the library does in one pass over memory: on the CPU, on the same
tensors, with as many threads, in turn. Rows for the table of `make bench`.

    eager.py LIBRARY [PATTERN ...]

LIBRARY is libdiffcache.so; of the figures, those are measured that contain all patterns. What is timed on the other side is diffusers' own code: the `new_forward` of its hooks, with a
block whose output is there already, and the `update` and `predict` of its Taylor state. On ours it is the calls that an
engine makes at the same place. Nothing is subtracted from either.

Where there is no torch or no diffusers, the rows say so.
"""

import ctypes
import itertools
import os
import statistics
import sys
import time
import warnings
from types import SimpleNamespace

from diffcache import Library

try:
    import torch
    from diffusers.hooks import faster_cache, first_block_cache, taylorseer_cache
    from diffusers.hooks._helpers import TransformerBlockMetadata
    from diffusers.hooks.hooks import CacheContext, StateManager
except ImportError as error:
    torch, ABSENT = None, str(error)

SECTION = "beside PyTorch eager"
REPEATS = 15
THREADS = (1, 2)
DTYPES = ("bf16", "f16", "f32")
FLUX = (4608, 3072)  # 4096 image and 512 text tokens
# Batch, frames, channels, height, width.
VIDEOS = {"CogVideoX 480x720": (1, 13, 16, 60, 90), "Wan 480x832": (1, 21, 16, 60, 104)}
NO_LIMITS = "warmup_steps=0,last_steps=0,max_consecutive=none,max_error=none,max_gain=none,max_age=none"
UNCOND_EVERY = 5


# ---- our side ----


class Cache:
    """A cache of an engine with one block after the first, or one layer."""

    def __init__(self, dc, threads, options, hook, flags=0):
        self.dc, self.handle, self.step = dc, ctypes.c_void_p(), 0
        engine, parsed = dc.dc_engine_t(), dc.dc_options_t()
        dc.check(dc.dc_engine_init(engine, ctypes.sizeof(engine)))
        engine.hooks, engine.flags, engine.n_threads, engine.n_branches = hook, flags, threads, 2
        engine.n_blocks, engine.n_layers = 2, int(hook == dc.DC_HOOK_LAYERS)
        dc.check(dc.dc_options_init(parsed, ctypes.sizeof(parsed), None))
        dc.check(dc.dc_options_parse(parsed, options.encode()))
        dc.check(dc.dc_cache_create(engine, parsed, ctypes.byref(self.handle)))
        run = dc.dc_run_t(struct_size=ctypes.sizeof(dc.dc_run_t))
        dc.check(dc.dc_cache_begin_run(self.handle, run))

    def next_pass(self, branch=0):
        dc = self.dc
        about = dc.dc_pass_t(struct_size=ctypes.sizeof(dc.dc_pass_t), step=self.step, n_branches=1)
        about.branches[0] = branch
        self.step += 1
        return about

    def begin(self):
        self.dc.check(self.dc.dc_cache_begin_pass(self.handle, self.next_pass()))

    def end(self):
        self.dc.check(self.dc.dc_cache_end_pass(self.handle))

    def expect(self, action, expected):
        if action != expected:
            raise RuntimeError(f"answered {action}: {self.dc.dc_last_error().decode()}")

    def close(self):
        self.dc.dc_cache_destroy(self.handle)


def lent(dc, tensor):
    dtype = {torch.float32: dc.DC_F32, torch.float16: dc.DC_F16, torch.bfloat16: dc.DC_BF16}[tensor.dtype]
    view = dc.dc_tensor_t(data=tensor.data_ptr(), dtype=dtype, ndim=tensor.dim())
    view.shape[: tensor.dim()] = tensor.shape
    view.owner = tensor  # which lives as long
    return view


# ---- what is compared: each side is a function that returns the seconds of its next step ----


def first_block_hooks(x, fronts, out, threshold):
    """A pass through FBCache's hooks on the first block and on the last."""
    states = StateManager(first_block_cache.FBCSharedBlockState, (), {})
    states.set_context(CacheContext("cond"))
    head = first_block_cache.FBCHeadBlockHook(states, threshold)
    tail = first_block_cache.FBCBlockHook(states, is_tail=True)
    head._metadata = tail._metadata = TransformerBlockMetadata(return_hidden_states_index=0)
    front = itertools.cycle(fronts)
    head.fn_ref = SimpleNamespace(original_forward=lambda hidden_states: next(front))
    tail.fn_ref = SimpleNamespace(original_forward=lambda hidden_states: out)

    def one_pass(whole):
        start = time.perf_counter()
        h = head.new_forward(None, hidden_states=x)
        decided = time.perf_counter()
        tail.new_forward(None, hidden_states=h)
        return (time.perf_counter() if whole else decided) - start

    return one_pass


def first_block(dc, threads, dtype, flags, action, whole):
    """FBCache: the decision alone, or all of a pass that computes or skips. diffusers' decision leaves the new residual;
    ours does where the input was copied, and else leaves it to a pass that computes."""
    tensors = [torch.randn(1, *FLUX).to(dtype) for _ in range(4)]
    threshold = 1e-9 if action == dc.DC_COMPUTE else 1e9
    cache = Cache(dc, threads, f"fbcache,threshold={threshold},{NO_LIMITS}", dc.DC_HOOK_EACH, flags)
    (x, *fronts, out), handle = [lent(dc, tensor) for tensor in tensors], cache.handle
    front = itertools.cycle(fronts)

    def ours(expected=action):
        h = next(front)
        cache.begin()
        start = time.perf_counter()
        cache.expect(dc.dc_cache_before_block(handle, 0, x, None, 1), dc.DC_COMPUTE)
        dc.dc_cache_after_block(handle, 0, h, 1)
        cache.expect(dc.dc_cache_decide(handle, dc.DC_UNDECIDED), expected)
        decided = time.perf_counter()
        if dc.dc_cache_before_block(handle, 1, h, out, 1) == dc.DC_COMPUTE:
            dc.dc_cache_after_block(handle, 1, out, 1)
        done = time.perf_counter()
        cache.end()
        return (done if whole else decided) - start

    one_pass = first_block_hooks(tensors[0], tensors[1:3], tensors[3], threshold)
    ours(dc.DC_COMPUTE), one_pass(whole)  # there is nothing to compare with yet
    return ours, lambda: one_pass(whole), cache.close


def taylor(dc, threads, dtype, skipped):
    """TaylorSeer of order 1 on a layer: every second step is predicted from the two computed before."""
    outs = [torch.randn(1, *FLUX).to(dtype) for _ in range(2)]
    cache = Cache(dc, threads, f"taylorseer,every=2,order=1,{NO_LIMITS},warmup_steps=2", dc.DC_HOOK_LAYERS)
    views = [lent(dc, tensor) for tensor in outs]
    state = taylorseer_cache.TaylorSeerState(taylor_factors_dtype=dtype, max_order=1)

    def one_pass(expected):
        view = views[cache.step // 2 % 2]
        cache.begin()
        start = time.perf_counter()
        cache.expect(dc.dc_cache_before_layer(cache.handle, 0, dc.DC_KIND_SPATIAL, view, 1), expected)
        if expected == dc.DC_COMPUTE:
            dc.dc_cache_after_layer(cache.handle, 0, view, 1)
        seconds = time.perf_counter() - start
        cache.end()
        return seconds

    def ours():
        computed, predicted = one_pass(dc.DC_COMPUTE), one_pass(dc.DC_SKIP)
        return predicted if skipped else computed

    def theirs():
        state.current_step += 1
        start = time.perf_counter()
        state.update((outs[state.current_step // 2 % 2],))
        updated = time.perf_counter()
        state.current_step += 1
        resumed = time.perf_counter()
        state.prediction = state.predict()  # it lives on, as where a model goes on with it
        return time.perf_counter() - resumed if skipped else updated - start

    one_pass(dc.DC_COMPUTE)
    return ours, theirs, cache.close


def guidance(dc, threads, dtype, shape):
    """FasterCache: the unconditional branch of the steps between two that compute it. Of these the first has a low pass to
    work out on our side; the figure is for all of them."""
    cond, uncond, estimate = (torch.randn(shape).to(dtype) for _ in range(3))
    cache = Cache(dc, threads, f"none,guidance.every={UNCOND_EVERY},guidance.low=1.1", dc.DC_HOOK_GUIDE)
    views = [lent(dc, tensor) for tensor in (cond, uncond, estimate)]

    def before(about, out, expected):
        cache.expect(dc.dc_cache_before_uncond(cache.handle, about, views[0], out), expected)

    def ours():
        about = cache.next_pass(branch=1)
        before(about, views[1], dc.DC_COMPUTE)
        dc.check(dc.dc_cache_after_uncond(cache.handle, about, views[0], views[1]))
        skipped = [cache.next_pass(branch=1) for _ in range(UNCOND_EVERY - 1)]
        start = time.perf_counter()
        for about in skipped:
            before(about, views[2], dc.DC_SKIP)
        return time.perf_counter() - start

    outputs = {True: torch.cat([uncond, cond]), False: cond}
    hook = faster_cache.FasterCacheDenoiserHook(
        unconditional_batch_skip_range=UNCOND_EVERY,
        unconditional_batch_timestep_skip_range=(-1, 641),
        tensor_format="BFCHW",
        is_guidance_distilled=False,
        uncond_cond_input_kwargs_identifiers=(),
        current_timestep_callback=lambda: 500,
        low_frequency_weight_callback=lambda module: 1.1,
        high_frequency_weight_callback=lambda module: 1.0,
    )
    hook.initialize_hook(None)
    hook.fn_ref = SimpleNamespace(original_forward=lambda: outputs[hook.state.iteration % UNCOND_EVERY == 0])

    def theirs():
        hook.new_forward(None)
        start = time.perf_counter()
        for _ in range(UNCOND_EVERY - 1):
            hook.new_forward(None)
        return time.perf_counter() - start

    return ours, theirs, cache.close


def cases():
    """Figure, target, rival; function and its last arguments."""
    head, hooks, keeps = "FBCHeadBlockHook", "FBCHeadBlockHook, FBCBlockHook", "DC_ENGINE_KEEPS_INPUT"
    for dtype in DTYPES:
        shape = f"{dtype} {FLUX[0]}x{FLUX[1]}"
        yield f"FBCache, decision, {shape}", 20, head, first_block, dtype, [keeps, "DC_COMPUTE", False]
        if dtype == "bf16":
            yield f"FBCache, decision, input copied, {shape}", None, head, first_block, dtype, [0, "DC_COMPUTE", False]
            yield f"FBCache, pass computed, {shape}", None, hooks, first_block, dtype, [keeps, "DC_COMPUTE", True]
            yield f"FBCache, pass skipped, {shape}", None, hooks, first_block, dtype, [keeps, "DC_SKIP", True]
        yield f"Taylor order 1, predict, {shape}", 5, "TaylorSeerState.predict", taylor, dtype, [True]
        yield f"Taylor order 1, update, {shape}", 2.5, "TaylorSeerState.update", taylor, dtype, [False]
    for dtype in ("bf16", "f32"):
        for video, shape in VIDEOS.items():
            yield f"guidance skipped, {dtype} {video}", 12, "FasterCacheDenoiserHook", guidance, dtype, [shape]


# ---- rows ----


def report(figure, values, target, rival):
    cells = ["", "", ""]
    if values:
        low, median, high = statistics.quantiles(values, n=4)
        cells = [f"{value:.4g}" for value in (median, low, high)]
    target = f">={target}" if target else ""
    print(f"{SECTION}: {figure}: {cells[0] or 'not measured'} ({cells[1]} to {cells[2]}) {target} {rival}", flush=True)
    if "DC_FIGURES" in os.environ:
        with open(os.environ["DC_FIGURES"], "a") as file:
            print(SECTION, figure, *cells, "x", target, rival, sep="\t", file=file)


def ratios(dc, function, threads, dtype, arguments):
    torch.set_num_threads(threads)
    torch.manual_seed(1)
    dtype = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32}[dtype]
    arguments = [getattr(dc, a) if isinstance(a, str) else a for a in arguments]
    ours, theirs, close = function(dc, threads, dtype, *arguments)
    ours(), theirs()

    def ratio():
        seconds = theirs()
        time.sleep(0.02)  # OpenMP's threads spin for some milliseconds after their work, on cores that we need
        return seconds / ours()

    values = [ratio() for _ in range(REPEATS)]
    close()
    return values


def main():
    dc = Library(sys.argv[1])
    for threads in THREADS:
        for figure, target, rival, function, dtype, arguments in cases():
            if not all(pattern in figure for pattern in sys.argv[2:]):
                continue
            values = ratios(dc, function, threads, dtype, arguments) if torch else []
            figure = f"{figure}, {threads} thread{'s' * (threads > 1)}"
            report(figure, values, target, rival if torch else f"not here: {ABSENT}")


if __name__ == "__main__":
    if torch:
        torch.set_grad_enabled(False)
        warnings.filterwarnings("ignore", "torch.meshgrid")
    main()
