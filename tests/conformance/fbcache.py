#!/usr/bin/env python3
"""Records what diffusers' own FirstBlockCache does, for libdiffcache to be held against.

    python fbcache.py [--out DIR]            write the recordings (a few seconds)
    python fbcache.py --verify [--out DIR]   check them against the written rule, without diffusers

A recording is one small random transformer driven along a prescribed trajectory: the inputs of a step
never depend on an earlier output, so every pass can be replayed alone, from the tensors of the file.
Each trajectory is run once without a cache and then once per threshold with
`model.enable_cache(FirstBlockCacheConfig(threshold))`. Decisions, metrics and reused outputs are
overheard from outside (see `RecordingThreshold` and `overhear`); diffusers does all of the work.

Beside each of these runs stands the corrected rule, computed here in float64:

    d = sum|r - r_ref| / sum|r_ref|,   reuse iff d < threshold   (NaN and infinity compute)

with r = h1 - x rounded to the tensors' dtype, as it is kept, and r_ref that of the last computed pass.

README.md lists the tensors and the metadata of a file.
"""

import argparse
import functools
import json
import math
import os
from dataclasses import dataclass
from pathlib import Path

# The baseline kernels, so that no instruction set of this CPU colours the last bits of a sum.
os.environ["ATEN_CPU_CAPABILITY"] = "default"

import numpy as np
import torch
from safetensors import safe_open

DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
FORMAT_NAMES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
ALWAYS_COMPUTE, ALWAYS_REUSE = 1e-6, 10.0

# Decisions closer to the threshold than this would depend on the order of a sum. There are none.
BAND = 1e-5


# ---- the model ----


def normal(rng, *shape, scale=1.0):
    return torch.from_numpy(rng.standard_normal(shape) * scale)


class TransformerBlock(torch.nn.Module):
    """Single-head attention and an MLP over text and image together.

    All arithmetic is float64, rounded once to the dtype of the input: the recordings then do not
    depend on how a matrix product was blocked or vectorised.
    """

    def __init__(self, rng, width):
        super().__init__()
        scale = width**-0.5
        self.qkv = normal(rng, width, 3 * width, scale=scale)
        self.project = normal(rng, width, width, scale=scale)
        self.up = normal(rng, width, 2 * width, scale=scale)
        self.down = normal(rng, 2 * width, width, scale=scale)

    def mix(self, tokens, temb):
        width = tokens.shape[-1]
        query, key, value = (self.norm(tokens) * (1 + temb) @ self.qkv).chunk(3, dim=-1)
        weights = (query @ key.transpose(-1, -2) * width**-0.5).softmax(dim=-1)
        tokens = tokens + 0.5 * (weights @ value) @ self.project
        hidden = torch.tanh((self.norm(tokens) + temb) @ self.up)
        return tokens + 0.5 * hidden @ self.down

    @staticmethod
    def norm(tokens):
        return torch.nn.functional.layer_norm(tokens, tokens.shape[-1:])


class ImageBlock(TransformerBlock):
    def forward(self, hidden_states, temb):
        return self.mix(hidden_states.double(), temb).to(hidden_states.dtype)


class JointBlock(TransformerBlock):
    """Returns (text, image), as the blocks of FLUX do."""

    def forward(self, hidden_states, encoder_hidden_states, temb):
        n_text = encoder_hidden_states.shape[1]
        tokens = torch.cat([encoder_hidden_states, hidden_states], dim=1)
        tokens = self.mix(tokens.double(), temb).to(hidden_states.dtype)
        return tokens[:, :n_text].contiguous(), tokens[:, n_text:].contiguous()


class ScriptedBlock(torch.nn.Module):
    """Adds a prescribed residual: the head of the edge cases."""

    def forward(self, hidden_states, temb):
        return hidden_states + temb.to(hidden_states.dtype)


class ShearBlock(torch.nn.Module):
    """Something simple that lets a NaN reach only its neighbour."""

    def forward(self, hidden_states, temb):
        hidden = hidden_states.double()
        return (1.5 * hidden - 0.25 * hidden.roll(1, dims=-1)).to(hidden_states.dtype)


def transformer_class():
    """The toy as a diffusers model. Imported late: `--verify` needs no diffusers."""
    import diffusers
    from diffusers.hooks._helpers import TransformerBlockMetadata, TransformerBlockRegistry

    for image_only in (ImageBlock, ScriptedBlock, ShearBlock):
        TransformerBlockRegistry.register(
            image_only,
            TransformerBlockMetadata(return_hidden_states_index=0, return_encoder_hidden_states_index=None),
        )
    TransformerBlockRegistry.register(
        JointBlock,
        TransformerBlockMetadata(return_hidden_states_index=1, return_encoder_hidden_states_index=0),
    )

    class ToyTransformer(torch.nn.Module, diffusers.CacheMixin):
        def __init__(self, blocks):
            super().__init__()
            self.transformer_blocks = torch.nn.ModuleList(blocks)

        def forward(self, image, text, temb):
            for block in self.transformer_blocks:
                if text is None:
                    image = block(image, temb=temb)
                else:
                    text, image = block(image, text, temb=temb)
            return (image,) if text is None else (image, text)

    return ToyTransformer


# ---- the trajectories ----


@dataclass
class Trajectory:
    name: str
    dtype: str
    seed: int
    blocks: list
    branches: tuple
    streams: tuple
    inputs: list  # per step and branch: {"image", "text" (or None), "temb"}
    thresholds: tuple
    meet_one: bool = False  # add a threshold that some metric meets exactly


def sampling_trajectory(kind, image, text, n_blocks, steps, branches, dtype, seed, thresholds, meet_one=False):
    """A latent that wanders smoothly, fast here and slow there; each branch has its own prompt."""
    rng = np.random.default_rng(seed)
    width = image[-1]
    make_block = ImageBlock if text is None else JointBlock
    blocks = [make_block(rng, width) for _ in range(n_blocks)]

    ends = [normal(rng, *image) for _ in range(3)]
    prompts = {b: None if text is None else normal(rng, *text).to(DTYPES[dtype]) for b in branches}
    moods = {b: normal(rng, 1, 1, width, scale=0.3 + 0.4 * i) for i, b in enumerate(branches)}

    inputs, angle = [], 0.0
    for step in range(steps):
        latent = ends[0] * math.cos(angle) + ends[1] * math.sin(angle) + 0.5 * ends[2] * math.sin(2.3 * angle)
        inputs.append(
            {
                b: {
                    "image": latent.to(DTYPES[dtype]),
                    "text": prompts[b],
                    "temb": moods[b] * math.cos(3 * angle),
                }
                for b in branches
            }
        )
        angle += 0.004 + 0.08 * math.sin(2.4 * math.pi * step / steps + 1.0) ** 4

    return Trajectory(
        name=f"{kind}-{dtype}",
        dtype=dtype,
        seed=seed,
        blocks=blocks,
        branches=branches,
        streams=("image",) if text is None else ("image", "text"),
        inputs=inputs,
        thresholds=thresholds,
        meet_one=meet_one,
    )


EDGE_WIDTH, EDGE_SEED = 37, 50


def edge_trajectory(kind, dtype, residuals, *, threshold=0.25, unit=1.0, spoil=()):
    """Block 0 adds just what `residuals` says, and without rounding: all numbers are multiples of unit/8.

    A residual is a number, for that many units of either sign in every element, or an array.
    `spoil` lists (step, value) pairs: there one element of the input is that value.
    """
    rng = np.random.default_rng(EDGE_SEED)
    shape = (1, 1, EDGE_WIDTH)
    signs = rng.choice([-1.0, 1.0], size=shape)
    spoil = dict(spoil)

    inputs = []
    for step, residual in enumerate(residuals):
        x = torch.from_numpy(rng.integers(-8, 9, size=shape) * (unit / 8))
        if step in spoil:
            x[0, 0, 20] = spoil[step]
        residual = torch.from_numpy(signs * residual * unit)
        inputs.append({"cond": {"image": x.to(DTYPES[dtype]), "text": None, "temb": residual}})

    return Trajectory(
        name=f"{kind}-{dtype}",
        dtype=dtype,
        seed=EDGE_SEED,
        blocks=[ScriptedBlock(), ShearBlock(), ShearBlock()],
        branches=("cond",),
        streams=("image",),
        inputs=inputs,
        thresholds=(threshold,),
    )


ONE, TWO = ("cond",), ("cond", "uncond")
MODELS = (
    # kind, image, text, blocks, steps, branches
    ("image", (1, 5, 37), None, 3, 20, ONE),
    ("image-text", (1, 7, 19), (1, 3, 19), 4, 16, ONE),
    ("image-cfg", (1, 5, 13), None, 6, 24, TWO),
    ("image-text-cfg", (1, 4, 23), (1, 3, 23), 5, 16, TWO),
)


def trajectories():
    mixed = (ALWAYS_COMPUTE, 0.05, 0.12, ALWAYS_REUSE)
    for dtype_number, dtype in enumerate(DTYPES):
        for number, model in enumerate(MODELS):
            # Only a half format's grid is so coarse that a metric is the same for any order of sums.
            meet_one = dtype != "f32"
            yield sampling_trajectory(*model, dtype, 10 * dtype_number + number, mixed, meet_one)

        yield edge_trajectory("equal", dtype, [1, 1.25, 1.25, 1.5, 1, 1.125, 0.75, 0.5, 0.375])
        yield edge_trajectory("zero-residual", dtype, [0, 0, 0, 1, 1, 0, 0, 1, 1.125])
        yield edge_trajectory("nan", dtype, [1, 1.125, 1, 1.125, 1.5, 1.5, 1], spoil=[(2, math.nan)])
        yield edge_trajectory("nan-first", dtype, [1, 1, 1, 2, 1], spoil=[(0, math.nan)])
        infinite = np.where(np.arange(EDGE_WIDTH) == 7, math.inf, 1.0)
        yield edge_trajectory("infinite-residual", dtype, [1, 1.125, infinite, 1, 1, 1.125])

    # More elements than a summation block of the library holds, and not a multiple of anything.
    yield sampling_trajectory("long", (1, 129, 33), None, 3, 9, ONE, "bf16", 40, (0.08,))

    # Residuals of a few of float16's smallest numbers: each mean lands on the subnormal grid.
    rng = np.random.default_rng(7)
    base = rng.integers(4, 32, size=EDGE_WIDTH)
    drift = [base + rng.integers(-wander, wander + 1, size=EDGE_WIDTH) for wander in (0, 1, 3, 1, 9, 2, 4, 12, 1, 0)]
    yield edge_trajectory("subnormal", "f16", [d / 8 for d in drift], unit=8 * 2.0**-24)


# ---- listening to diffusers ----


class RecordingThreshold(float):
    """A threshold that remembers what it was compared with.

    diffusers decides by `metric > threshold`. The right operand's class derives from that of the
    left, so Python asks its reflected method first, and we see the very metric of the decision.
    """

    def __new__(cls, value):
        self = super().__new__(cls, value)
        self.metrics = []
        return self

    def __lt__(self, metric):
        self.metrics.append(metric)
        return float.__lt__(self, metric)


def overhear(block):
    """Keeps what the block itself returns, below any hook: the last output, or None if it did not run."""
    forward = block.forward

    @functools.wraps(forward)
    def heard(*args, **kwargs):
        output = forward(*args, **kwargs)
        block.said = (output,) if torch.is_tensor(output) else tuple(reversed(output))
        return output

    block.said = None
    block.forward = heard


@torch.no_grad()
def evaluate(model, given):
    """One pass: outputs of block 0 and of the last block (None if it was left out), and of the model."""
    head, tail = model.transformer_blocks[0], model.transformer_blocks[-1]
    head.said = tail.said = None
    output = model(given["image"], given["text"], given["temb"])
    return head.said, tail.said, output


def bits(tensor):
    return tensor.contiguous().view(torch.uint8)


def same_bits(ours, theirs):
    return all(torch.equal(bits(a), bits(b)) for a, b in zip(ours, theirs, strict=True))


@dataclass
class CachedRun:
    decisions: str
    metrics: list  # None where diffusers did not measure
    reused: list  # per reused pass: the model's output


def record_cached(model, trajectory, threshold, full):
    from diffusers.hooks import FirstBlockCacheConfig

    threshold = RecordingThreshold(threshold)
    model.enable_cache(FirstBlockCacheConfig(threshold=threshold))
    runs = {b: CachedRun("", [], []) for b in trajectory.branches}
    for step, given in enumerate(trajectory.inputs):
        for branch, run in runs.items():
            seen = len(threshold.metrics)
            with model.cache_context(branch):
                h1, y, output = evaluate(model, given[branch])
            assert same_bits(h1, full[branch]["h1"][step]), "block 0 always runs on the same input"

            measured = threshold.metrics[seen:]
            assert len(measured) <= 1
            run.metrics.append(measured[0] if measured else None)
            if y is None:
                run.decisions += "s"
                run.reused.append(output)
            else:
                run.decisions += "C"
                assert same_bits(output, full[branch]["y"][step]), "a computed pass is the full model"
    model.disable_cache()
    return runs


def record_full(model, trajectory):
    full = {b: {"x": [], "h1": [], "y": []} for b in trajectory.branches}
    for given in trajectory.inputs:
        for branch, kept in full.items():
            h1, y, output = evaluate(model, given[branch])
            assert same_bits(y, output)
            kept["x"].append(tuple(given[branch][s] for s in trajectory.streams))
            kept["h1"].append(h1)
            kept["y"].append(y)
    return full


# ---- the corrected rule ----


def corrected(threshold, dtype, x, h1, y):
    """float64 all through; only the residual under the metric is rounded, as it is when it is kept."""
    run = CachedRun("", [], [])
    reference = kept = None
    for x, h1, y in zip(x, h1, y):
        residual = (h1[0].double() - x[0].double()).to(DTYPES[dtype]).double()
        metric = None
        if reference is not None:
            metric = ((residual - reference).abs().sum() / reference.abs().sum()).item()
        run.metrics.append(metric)
        if metric is not None and metric < threshold:
            run.decisions += "s"
            run.reused.append(tuple((a.double() + k).float() for a, k in zip(h1, kept)))
        else:
            run.decisions += "C"
            reference = residual
            kept = tuple(b.double() - a.double() for a, b in zip(h1, y))
    return run


# ---- files ----


def write_safetensors(path, tensors, metadata):
    """The library's own writer shuffles the metadata; this one is the same bytes every time."""
    header, chunks, offset = {"__metadata__": metadata}, [], 0
    for name, tensor in tensors.items():
        chunk = bits(tensor).numpy().tobytes()
        header[name] = {
            "dtype": FORMAT_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + len(chunk)],
        }
        chunks.append(chunk)
        offset += len(chunk)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(chunks))


def stack(passes, stream):
    return torch.stack([streams[stream] for streams in passes])


def words(numbers):
    return " ".join("-" if n is None else repr(float(n)) for n in numbers)


def first_metric_above(runs, threshold):
    """The first metric of the first branch that broke the threshold; taken as threshold, it is met there."""
    metrics = next(iter(runs.values())).metrics
    return next(m for m in metrics if m is not None and m > threshold)


def record(transformer, trajectory):
    """One trajectory as the tensors and the metadata of its file."""
    model = transformer(trajectory.blocks)
    for block in model.transformer_blocks:
        overhear(block)
    full = record_full(model, trajectory)

    tensors = {
        f"{value}.{branch}.{stream}": stack(kept[value], i)
        for branch, kept in full.items()
        for value in ("x", "h1", "y")
        for i, stream in enumerate(trajectory.streams)
    }

    thresholds = list(trajectory.thresholds)
    if trajectory.meet_one:
        near = thresholds[len(thresholds) // 2]
        thresholds.append(first_metric_above(record_cached(model, trajectory, near, full), near))

    runs = {}
    for k, threshold in enumerate(thresholds):
        cached = record_cached(model, trajectory, threshold, full)
        exact = {b: corrected(threshold, trajectory.dtype, **full[b]) for b in trajectory.branches}
        for rule, by_branch in (("diffusers", cached), ("corrected", exact)):
            for branch, run in by_branch.items():
                runs[f"{k}.{rule}.decisions.{branch}"] = run.decisions
                runs[f"{k}.{rule}.metrics.{branch}"] = words(run.metrics)
                if run.reused:
                    for i, stream in enumerate(trajectory.streams):
                        tensors[f"{k}.{rule}.reused.{branch}.{stream}"] = stack(run.reused, i)

    metadata = {
        "name": trajectory.name,
        "dtype": trajectory.dtype,
        "n_blocks": str(len(trajectory.blocks)),
        "steps": str(len(trajectory.inputs)),
        "branches": " ".join(trajectory.branches),
        "streams": " ".join(trajectory.streams),
        "thresholds": words(thresholds),
        "seed": str(trajectory.seed),
        **versions(),
        **runs,
    }
    return tensors, metadata


def versions():
    import diffusers

    return {"torch": torch.__version__.split("+")[0], "diffusers": diffusers.__version__, "numpy": np.__version__}


def generate(folder):
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    folder.mkdir(parents=True, exist_ok=True)
    for stale in folder.glob("*.safetensors"):
        stale.unlink()
    transformer = transformer_class()
    for trajectory in trajectories():
        tensors, metadata = record(transformer, trajectory)
        write_safetensors(folder / f"{trajectory.name}.safetensors", tensors, metadata)


# ---- an independent look at the recordings ----


def widen(tensor):
    """Any recorded tensor as numpy float32, by its bits."""
    if tensor.dtype == torch.bfloat16:
        half = tensor.view(torch.int16).numpy().view(np.uint16)
        return (half.astype(np.uint32) << 16).view(np.float32)
    return tensor.numpy().astype(np.float32)


def rounded(values, dtype):
    """float32 -> dtype -> float32, to nearest even, in numpy alone."""
    values = np.asarray(values, np.float32)
    if dtype == "f32":
        return values
    if dtype == "f16":
        return values.astype(np.float16).astype(np.float32)
    word = values.view(np.uint32)
    nearest = (word + 0x7FFF + ((word >> 16) & 1)) & np.uint32(0xFFFF0000)
    return np.where(np.isnan(values), values, nearest.view(np.float32))


def mean(values, dtype):
    return rounded(np.float32(values.astype(np.float64).sum()) / np.float32(values.size), dtype)


def compat_metric(residual, reference, dtype):
    """Every operation rounds to the dtype of the tensors, as it does in eager PyTorch."""
    change = np.abs(rounded(residual - reference, dtype))
    return float(rounded(mean(change, dtype) / mean(np.abs(reference), dtype), dtype))


def exact_metric(residual, reference):
    residual, reference = residual.astype(np.float64), reference.astype(np.float64)
    return float(np.abs(residual - reference).sum() / np.abs(reference).sum())


def agree(ours, theirs, tolerance):
    if ours is None or theirs is None:
        return ours is theirs
    if not math.isfinite(theirs):
        return repr(ours) == repr(theirs)
    return abs(ours - theirs) <= tolerance * abs(theirs)


def verify_run(rule, threshold, dtype, x, h1, y, decisions, metrics, reused):
    """Derives one branch of one run again, from the tensors alone, and compares step by step.

    torch's float32 sums may be a few ulp off ours; the grid of a half format hides that, and the
    corrected rule adds in float64.
    """
    tolerance = 1e-12 if rule == "corrected" else 1e-6 if dtype == "f32" else 0.0
    reused = list(zip(*reused))
    reference = kept = None
    for step, decision in enumerate(decisions):
        residual = rounded(h1[0][step] - x[0][step], dtype)
        if reference is None:
            metric = None
        elif rule == "diffusers":
            metric = compat_metric(residual, reference, dtype)
        else:
            metric = exact_metric(residual, reference)
        assert agree(metric, metrics[step], tolerance), f"step {step}: {metric} is not {metrics[step]}"

        if metric is None:
            reuse = False
        elif rule == "diffusers":
            reuse = not metric > threshold
        else:
            reuse = metric < threshold
        assert decision == ("s" if reuse else "C"), f"step {step}: {metric} against {threshold}"
        if metric is not None and tolerance > 0:
            assert not 0 < abs(metric - threshold) <= BAND * threshold, f"step {step}: {metric} is too near"

        if not reuse:
            reference = residual
            exact = [b[step].astype(np.float64) - a[step] for a, b in zip(h1, y)]
            kept = [rounded(b[step] - a[step], dtype) for a, b in zip(h1, y)]
            continue
        for a, residual, precise, recorded in zip(h1, kept, exact, reused.pop(0), strict=True):
            if rule == "diffusers":
                expected = rounded(a[step] + residual, dtype)
            else:
                expected = (a[step] + precise).astype(np.float32)
            assert np.array_equal(recorded, expected, equal_nan=True), f"step {step}: reused output"
    assert not reused, "outputs of passes that were not reused"


def verify_file(path):
    """Checks every run of a file; yields (threshold, rule, branch, decisions)."""
    with safe_open(path, framework="pt") as file:
        meta = file.metadata()
        tensors = {name: widen(file.get_tensor(name)) for name in file.keys()}

    def streams(prefix):
        return [tensors.get(f"{prefix}.{stream}", ()) for stream in meta["streams"].split()]

    for k, threshold in enumerate(map(float, meta["thresholds"].split())):
        for rule in ("diffusers", "corrected"):
            for branch in meta["branches"].split():
                decisions = meta[f"{k}.{rule}.decisions.{branch}"]
                metrics = meta[f"{k}.{rule}.metrics.{branch}"].split()
                assert len(decisions) == len(metrics) == int(meta["steps"])
                inputs = [streams(f"{value}.{branch}") for value in ("x", "h1", "y")]
                metrics = [None if metric == "-" else float(metric) for metric in metrics]
                reused = streams(f"{k}.{rule}.reused.{branch}")
                try:
                    verify_run(rule, threshold, meta["dtype"], *inputs, decisions, metrics, reused)
                except AssertionError as error:
                    raise AssertionError(f"{path.name}, run {k}, {rule}, {branch}, {error}") from error
                yield threshold, rule, branch, decisions


def verify(folder):
    """Checks every file, and prints the decisions."""
    files = sorted(folder.glob("*.safetensors"))
    assert files, f"no recordings in {folder}"
    for path in files:
        print(path.stem)
        with np.errstate(all="ignore"):
            for threshold, rule, branch, decisions in verify_file(path):
                print(f"  {threshold:<10.6g} {rule:<9} {branch:<6} {decisions}")
    size = sum(path.stat().st_size for path in files)
    print(f"{len(files)} files, {size / 1e6:.2f} MB: decisions, metrics and outputs follow the rules")


def run(what, folder, generate, verify):
    """The command line of a recorder."""
    parser = argparse.ArgumentParser(description=what.split("\n")[0])
    here = Path(__file__).resolve().parent
    parser.add_argument("--out", type=Path, default=here / folder, help="folder of the recordings")
    parser.add_argument("--verify", action="store_true", help="check the recordings there, write nothing")
    args = parser.parse_args()
    if args.verify:
        verify(args.out)
    else:
        generate(args.out)


if __name__ == "__main__":
    run(__doc__, "fbcache", generate, verify)
