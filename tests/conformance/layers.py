#!/usr/bin/env python3
"""Records what diffusers' layer caches do: TaylorSeer, Pyramid Attention Broadcast and FasterCache.

    python layers.py [--out DIR]            write the recordings (a few seconds)
    python layers.py --verify [--out DIR]   check them against the written rules, without diffusers

A recording is one of diffusers' own models, tiny and random, driven along a prescribed trajectory: the
latent of a step never depends on an earlier output. The caches work on modules (attention, feed-forward,
the last projection), here called sites. A file holds what each site returned to the model in each step,
and whether the module below the cache ran; both are overheard from outside (see `listen`), and diffusers
does all of the work. Of FasterCache the file also holds the predictions that the guided model returned.

Two families are no real models. `guidance` has no sites: it echoes prescribed predictions, and FasterCache
estimates the unconditional one. `edges` is one site that echoes zeros of both signs, subnormal numbers and
some that overflow the factors' dtype.

README.md lists the tensors and the metadata of a file.
"""

import dataclasses
import math
import os
import warnings
from dataclasses import dataclass, field

# Intel's library for matrix products takes the same path on every x86-64.
os.environ["MKL_CBWR"] = "COMPATIBLE"

from fbcache import DTYPES, normal, overhear, rounded, run, versions, widen, write_safetensors  # sets torch's kernels

import numpy as np
import torch
from safetensors import safe_open

DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}

# Estimates of the unconditional prediction: how far a float32 FFT may be from a float64 one, in parts of
# the largest element, before the one rounding to the model's dtype.
FFT_BAND = 1e-6


# ---- the models ----


@dataclass
class Toy:
    model: torch.nn.Module
    latent: tuple  # shape of one branch
    prompts: dict  # argument: shape of one branch
    fixed: dict = field(default_factory=dict)
    time_unit: float = 1.0


def echo(n_sites):
    """A diffusers model that predicts what it is given."""
    import diffusers
    from diffusers.models.attention import AttentionModuleMixin

    class EchoAttention(torch.nn.Module, AttentionModuleMixin):
        def forward(self, hidden_states):
            return hidden_states.clone()

    class Echo(torch.nn.Module, diffusers.CacheMixin):
        def __init__(self):
            super().__init__()
            blocks = [torch.nn.ModuleDict({"attn": EchoAttention()}) for _ in range(n_sites)]
            self.transformer_blocks = torch.nn.ModuleList(blocks)

        def forward(self, hidden_states, timestep, return_dict=False):
            hidden_states = hidden_states.clone()
            for block in self.transformer_blocks:
                hidden_states = block["attn"](hidden_states)
            return (hidden_states,)

    return Echo()


def flux():
    """Two blocks of two streams, whose attention returns (image, text), then a block of one stream."""
    from diffusers import FluxTransformer2DModel

    model = FluxTransformer2DModel(
        in_channels=5,
        num_layers=2,
        num_single_layers=1,
        attention_head_dim=6,
        num_attention_heads=3,
        joint_attention_dim=8,
        pooled_projection_dim=6,
        axes_dims_rope=(2, 2, 2),
    )
    places = torch.zeros(5, 3)
    places[:, 2] = torch.arange(5)
    return Toy(
        model,
        latent=(1, 5, 5),
        prompts={"encoder_hidden_states": (1, 3, 8), "pooled_projections": (1, 6)},
        fixed={"img_ids": places, "txt_ids": torch.zeros(3, 3)},
        time_unit=1e-3,
    )


def cogvideox():
    """Joint attention over text and frames, (video, text); frames before channels."""
    from diffusers import CogVideoXTransformer3DModel

    model = CogVideoXTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=6,
        in_channels=3,
        out_channels=3,
        time_embed_dim=8,
        text_embed_dim=7,
        num_layers=2,
        use_rotary_positional_embeddings=True,
    )
    return Toy(model, latent=(1, 2, 3, 6, 6), prompts={"encoder_hidden_states": (1, 3, 7)})


def latte():
    """A block over space, with cross-attention, and a block over time; channels before frames."""
    from diffusers import LatteTransformer3DModel

    model = LatteTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=6,
        in_channels=3,
        out_channels=3,
        num_layers=1,
        cross_attention_dim=12,
        attention_bias=True,
        sample_size=6,
        patch_size=2,
        activation_fn="gelu-approximate",
        norm_type="ada_norm_single",
        norm_elementwise_affine=False,
        caption_channels=7,
        video_length=2,
    )
    return Toy(model, latent=(1, 3, 2, 6, 6), prompts={"encoder_hidden_states": (1, 4, 7)})


def wan():
    """Self-attention over space and time together, and cross-attention; channels before frames."""
    from diffusers import WanTransformer3DModel

    model = WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=6,
        in_channels=3,
        out_channels=3,
        text_dim=7,
        freq_dim=16,
        ffn_dim=20,
        num_layers=2,
        rope_max_seq_len=16,
    )
    return Toy(model, latent=(1, 3, 2, 4, 6), prompts={"encoder_hidden_states": (1, 4, 7)})


FAMILIES = {"flux": flux, "cogvideox": cogvideox, "latte": latte, "wan": wan}


def fill(model, rng):
    """Random weights by NumPy: livelier than the models' own, and the same with any torch."""
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            values = normal(rng, *parameter.shape, scale=math.prod(parameter.shape[1:]) ** -0.5)
        else:
            values = normal(rng, *parameter.shape, scale=0.2) + name.endswith("weight")
        parameter.data = values.to(parameter.dtype)


# ---- the trajectories ----


@dataclass
class Trajectory:
    family: str
    method: str
    variant: str
    timesteps: list
    config: dict  # the parameters of diffusers' config that are not its defaults
    cfg: str = "none"
    attention_weight: float | None = None
    shape: tuple | None = None  # of the predictions of the family `guidance`
    kinds: dict = field(default_factory=dict)  # kinds that diffusers takes for other ones
    dtypes: tuple = tuple(DTYPES)

    @property
    def stem(self):
        return "-".join(filter(None, (self.family, self.method, self.variant)))

    @property
    def passes(self):
        """The contexts of a step, and the branches whose rows are in each."""
        return {
            "none": {"cond": ("cond",)},
            "sequential": {"cond": ("cond",), "uncond": ("uncond",)},
            "batched": {"cond_uncond": ("uncond", "cond")},
        }[self.cfg]

    @property
    def branches(self):
        return [branch for branches in self.passes.values() for branch in branches]


def descending(first, stride, steps):
    return [first - stride * step for step in range(steps)]


def trajectories():
    yield from taylorseer_trajectories()
    yield from pab_trajectories()
    yield from fastercache_trajectories()
    yield from guidance_trajectories()


def taylorseer_trajectories():
    def trajectory(family, variant, steps, cfg="none", interval=5, before=3, after=None, **config):
        config.update(
            cache_interval=interval, disable_cache_before_step=before, disable_cache_after_step=after
        )
        return Trajectory(family, "taylorseer", variant, descending(1000, 40, steps), config, cfg)

    f32, f16 = torch.float32, torch.float16
    # The defaults: order 1, factors in bf16. A factor dtype of None is that of the tensors.
    yield trajectory("flux", "", 16)
    yield trajectory("flux", "order0", 13, interval=3, before=1, max_order=0, taylor_factors_dtype=None)
    yield trajectory("flux", "order2", 20, "sequential", 5, 4, 17, max_order=2, taylor_factors_dtype=f32)
    yield trajectory("flux", "order3", 16, interval=3, before=2, max_order=3, taylor_factors_dtype=f16)
    yield trajectory("flux", "order4", 20, "none", 3, 6, 18, max_order=4, taylor_factors_dtype=None)
    yield trajectory("flux", "lite", 20, "sequential", max_order=2, use_lite_mode=True)

    # The patterns are those of re.fullmatch; the default ones would match nothing here.
    joint = [r"transformer_blocks\.\d+\.attn1", r"transformer_blocks\.\d+\.ff"]
    yield trajectory("cogvideox", "", 14, "batched", interval=4, max_order=2, cache_identifiers=joint)
    every = [r".*\.attn[12]", r".*\.ff"]
    yield trajectory("latte", "", 15, "none", 3, 4, 12, taylor_factors_dtype=f32, cache_identifiers=every)
    every = [r"blocks\.\d+\.(attn[12]|ffn)"]
    yield trajectory("wan", "", 18, "sequential", 6, 5, max_order=3, cache_identifiers=every)

    yield trajectory("edges", "", 14, "none", 3, 4, max_order=2, taylor_factors_dtype=f16)


def pab_trajectories():
    def trajectory(family, variant, timesteps, cfg="none", identifiers=None, kinds=None, dtypes=None, **kind):
        """`kind`: the skip range and the two bounds."""
        config = {}
        for name, (skip_range, *window) in kind.items():
            config[f"{name}_attention_block_skip_range"] = skip_range
            if window:
                config[f"{name}_attention_timestep_skip_range"] = tuple(window)
        if identifiers is not None:
            config["spatial_attention_block_identifiers"] = identifiers
        return Trajectory(
            family, "pab", variant, timesteps, config, cfg, kinds=kinds or {}, dtypes=dtypes or tuple(DTYPES)
        )

    every_50 = descending(1000, 50, 20)
    # No range at all: diffusers warns and takes 2 for spatial attention. 800 and 100 are met exactly.
    yield trajectory("flux", "", every_50)
    # The first step lies in the window.
    yield trajectory("flux", "long", descending(840, 40, 20), spatial=(4, 200, 850))
    # Bounds that are met, one of them no integer.
    yield trajectory("cogvideox", "", descending(999, 37.25, 16), "batched", spatial=(3, 477.5, 850))
    yield trajectory(
        "latte",
        "",
        every_50,
        identifiers=("^transformer_blocks",),
        spatial=(2, 100, 800),
        temporal=(3, 200, 900),
        cross=(6, -1, 950),
    )
    # The default identifiers find "transformer_blocks" in "temporal_transformer_blocks", too.
    yield trajectory(
        "latte",
        "by-substring",
        descending(1000, 75, 12),
        kinds={"temporal": "spatial"},
        dtypes=("bf16",),
        spatial=(2,),
        temporal=(3,),
    )
    # A window around everything, and a range of 1, which never skips.
    yield trajectory("wan", "", descending(1000, 62.5, 14), spatial=(3, -1, 1001), cross=(1,))


def fastercache_trajectories():
    def trajectory(family, variant, timesteps, weight, cfg="batched", spatial=(2, -1, 681), **config):
        config["spatial_attention_block_skip_range"] = spatial[0]
        config["spatial_attention_timestep_skip_range"] = spatial[1:]
        return Trajectory(family, "fastercache", variant, timesteps, config, cfg, attention_weight=weight)

    every_50 = descending(1000, 50, 18)
    distilled = {"cfg": "none", "is_guidance_distilled": True, "tensor_format": "BCHW"}
    yield trajectory("flux", "", every_50, 0.5, **distilled)
    # Several skips in a row; both bounds are met exactly.
    yield trajectory("flux", "long", every_50, 0.7, spatial=(5, 250, 850), **distilled)

    yield trajectory("edges", "", every_50, 0.75, spatial=(3, -1, 901), **distilled)

    # The defaults, but for format and weight.
    yield trajectory("cogvideox", "", descending(950, 50, 19), 0.3, tensor_format="BFCHW")
    # Attention could be skipped from the first step on, but is computed where the whole batch passes.
    yield trajectory(
        "cogvideox",
        "long",
        descending(900, 50, 16),
        0.5,
        spatial=(7, 200, 1001),
        unconditional_batch_skip_range=6,
        unconditional_batch_timestep_skip_range=(-1, 850),
        tensor_format="BFCHW",
    )
    yield trajectory(
        "latte",
        "",
        descending(1000, 50, 20),
        0.8,
        spatial=(3, -1, 701),
        temporal_attention_block_skip_range=2,
        temporal_attention_timestep_skip_range=(150, 550),
        low_frequency_weight_update_timestep_range=(300, 1000),
        high_frequency_weight_update_timestep_range=(-1, 400),
        alpha_low_frequency=1.25,
        alpha_high_frequency=0.9,
        unconditional_batch_skip_range=4,
        unconditional_batch_timestep_skip_range=(100, 800),
        tensor_format="BCFHW",
    )


def guidance_trajectories():
    def trajectory(variant, shape, tensor_format, timesteps, every, low=(99, 901), high=(-1, 301), **config):
        config.update(
            tensor_format=tensor_format,
            unconditional_batch_skip_range=every,
            low_frequency_weight_update_timestep_range=low,
            high_frequency_weight_update_timestep_range=high,
        )
        return Trajectory("guidance", "fastercache", variant, timesteps, config, "batched", shape=shape)

    # First only the low frequencies are weighted, then both, then only the high ones.
    yield trajectory("square", (1, 4, 16, 16), "BCHW", descending(484, 55, 9), 5)
    # The weights are equal, and the filter without effect; 700 and 150 are met exactly.
    yield trajectory(
        "equal",
        (1, 3, 8, 13),
        "BCHW",
        descending(800, 50, 14),
        4,
        low=(200, 700),
        high=(200, 700),
        unconditional_batch_timestep_skip_range=(150, 700),
    )
    frames = (2, 3, 4, 7, 9)
    always, weights = (-1, 1001), {"alpha_low_frequency": 1.3, "alpha_high_frequency": 0.8}
    yield trajectory("frames-first", frames, "BFCHW", descending(700, 100, 7), 3, always, always, **weights)
    yield trajectory("channels-first", frames, "BCFHW", descending(630, 90, 7), 5, low=(300, 601))
    # Nothing but the mean is a low frequency.
    for variant, shape in (("mean-square", (1, 2, 4, 4)), ("mean-flat", (1, 2, 3, 11))):
        yield trajectory(variant, shape, "BCHW", descending(980, 40, 24), 5, alpha_high_frequency=1.2)
    # The first step lies in the window; four estimates grow one from the other.
    yield trajectory("odd", (1, 2, 33, 47), "BCHW", descending(600, 110, 5), 6, high=(-1, 401))


def wander(rng, shape, steps):
    """A tensor that moves smoothly, fast here and slow there, in float64."""
    ends = [normal(rng, *shape) for _ in range(3)]
    angle = 0.0
    for step in range(steps):
        yield ends[0] * math.cos(angle) + ends[1] * math.sin(angle) + 0.5 * ends[2] * math.sin(2.3 * angle)
        angle += 0.01 + 0.12 * math.sin(2.4 * math.pi * step / steps + 1.0) ** 2


def sampling_inputs(toy, branches, steps, rng):
    """A latent that all branches share, and a prompt for each."""
    prompts = {
        branch: {name: normal(rng, *shape) for name, shape in toy.prompts.items()} for branch in branches
    }
    for latent in wander(rng, toy.latent, steps):
        yield {branch: {"hidden_states": latent, **prompts[branch]} for branch in branches}


def predictions(shape, steps, rng):
    """Smooth predictions with some noise."""
    for cond, change in zip(*[list(wander(rng, shape, steps)) for _ in range(2)]):
        yield {
            branch: {"hidden_states": cond + amount * change + normal(rng, *shape, scale=0.02)}
            for branch, amount in (("uncond", 0.3), ("cond", 0.0))
        }


def edge_values(dtype, method, steps, rng):
    """Drawn anew in each step: zeros, subnormal numbers of the dtype and of float16, ordinary and large ones."""
    smallest = {"f32": 2.0**-149, "f16": 2.0**-24, "bf16": 2.0**-133}[dtype]
    # TaylorSeer's second order overflows float16 where the sign alternates; the pair would end in NaN.
    largest = 20000.0 if method == "taylorseer" else 1000.0
    small = [n * unit for unit in (smallest, 2.0**-24) for n in (0.5, 1.0, 1.5, 2.0, 3.0, 5.0)]
    pool = np.array([*[0.0] * 10, *small, 2.0**-14, 1.0, 1.0078125, largest, largest])
    for step in range(steps):
        values = rng.choice(pool, size=(1, 3, 21)) * rng.choice([-1.0, 1.0], size=(1, 3, 21))
        values[0, 0, :2] = largest * (-1) ** step, -largest * (-1) ** step
        yield {"cond": {"hidden_states": torch.from_numpy(values)}}


def build(trajectory, dtype, rng):
    """The model, its arguments for each step and branch, and those that are the same for all."""
    steps, fixed, time_unit = len(trajectory.timesteps), {}, 1.0
    if trajectory.family == "guidance":
        model, inputs = echo(0), predictions(trajectory.shape, steps, rng)
    elif trajectory.family == "edges":
        model, inputs = echo(1), edge_values(dtype, trajectory.method, steps, rng)
    else:
        toy = FAMILIES[trajectory.family]()
        model, fixed, time_unit = toy.model, toy.fixed, toy.time_unit
        fill(model, rng)
        inputs = sampling_inputs(toy, trajectory.branches, steps, rng)

    given = []
    for t, by_branch in zip(trajectory.timesteps, inputs):
        given.append({})
        for branch, arguments in by_branch.items():
            rows = arguments["hidden_states"].shape[0]
            given[-1][branch] = {name: value.to(DTYPES[dtype]) for name, value in arguments.items()}
            given[-1][branch]["timestep"] = torch.full((rows,), t * time_unit, dtype=torch.float32)
    return model.to(DTYPES[dtype]).eval(), given, fixed


# ---- listening to diffusers ----


class Clock:
    now = None


def make_config(trajectory, clock):
    from diffusers.hooks import FasterCacheConfig, PyramidAttentionBroadcastConfig, TaylorSeerCacheConfig

    if trajectory.method == "taylorseer":
        return TaylorSeerCacheConfig(**trajectory.config)
    callbacks = {"current_timestep_callback": lambda: clock.now}
    if trajectory.method == "pab":
        return PyramidAttentionBroadcastConfig(**trajectory.config, **callbacks)
    if trajectory.attention_weight is not None:
        callbacks["attention_weight_callback"] = lambda _: trajectory.attention_weight
    return FasterCacheConfig(**trajectory.config, **callbacks)


def kind_of(name):
    """What a module is, by its name; None for a block, which lite mode leaves out."""
    last = name.split(".")[-1]
    if last in ("attn", "attn1"):
        return "temporal" if name.startswith("temporal") else "spatial"
    return {"attn2": "cross", "ff": "mlp", "ffn": "mlp", "proj_out": "model"}.get(last)


@dataclass
class Site:
    name: str
    kind: str
    module: torch.nn.Module
    returned: tuple | None = None


def hooked(model):
    """The modules below the model that the enabled cache has hooked."""
    return {
        name: module
        for name, module in model.named_modules()
        if name and hasattr(module, "_diffusers_hook") and module._diffusers_hook.hooks
    }


def listen(model, trajectory, clock):
    """Enables the cache between two ears.

    Below the hooks `overhear` tells whether a module ran, and for the model how many rows it was given;
    above them torch's own forward hooks see what was returned. The list fills in order of execution.
    """
    model.enable_cache(make_config(trajectory, clock))
    modules = hooked(model)
    model.disable_cache()

    below = model.forward

    def heard(*args, **kwargs):
        model.rows = kwargs["hidden_states"].shape[0]
        return below(*args, **kwargs)

    model.forward = heard
    sites = []
    for name, module in modules.items():
        if kind_of(name) is None:
            continue
        kind = trajectory.kinds.get(kind_of(name), kind_of(name))
        site = Site(name, kind, module)
        overhear(module)

        def returned(module, args, output, site=site):
            assert site.returned is None, "a site is called once a pass"
            site.returned = tuple(t.clone() for t in ((output,) if torch.is_tensor(output) else output))
            if site not in sites:
                sites.append(site)

        module.register_forward_hook(returned)

    config = make_config(trajectory, clock)
    model.enable_cache(config)
    return sites, config


def check_kind(site, config):
    """diffusers took the site for the kind it is said to be: the hook has the parameters of this kind."""
    for hook in site.module._diffusers_hook.hooks.values():
        if hasattr(hook, "block_skip_range"):
            assert hook.block_skip_range == getattr(config, f"{site.kind}_attention_block_skip_range")
            assert hook.timestep_skip_range == getattr(config, f"{site.kind}_attention_timestep_skip_range")


def held_bytes(model):
    """Bytes of tensor memory that the states of all hooks keep alive, each storage once."""
    storages, seen = {}, set()

    def walk(value):
        if id(value) in seen:
            return
        seen.add(id(value))
        if torch.is_tensor(value):
            storage = value.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
        elif isinstance(value, dict):
            for one in value.values():
                walk(one)
        elif isinstance(value, (list, tuple)):
            for one in value:
                walk(one)
        elif type(value).__module__.startswith("diffusers.hooks") and type(value).__name__.endswith(("State", "StateManager")):
            walk(vars(value))

    for module in model.modules():
        for hook in getattr(module, "_diffusers_hook", None).hooks.values() if hasattr(module, "_diffusers_hook") else ():
            walk(getattr(hook, "state", None))
            walk(getattr(hook, "state_manager", None))
    return sum(storages.values())


@torch.no_grad()
def record(trajectory, dtype, seed):
    """One trajectory as the tensors and the metadata of its file."""
    clock = Clock()
    model, given, fixed = build(trajectory, dtype, np.random.default_rng(seed))
    sites, config = listen(model, trajectory, clock)
    guided = trajectory.method == "fastercache" and trajectory.cfg == "batched"

    stacks, decisions, guide = {}, {}, {"uncond": [], "cond": []}
    for t, by_branch in zip(trajectory.timesteps, given):
        clock.now = t
        for context, branches in trajectory.passes.items():
            arguments = {
                name: torch.cat([by_branch[branch][name] for branch in branches])
                for name in by_branch[branches[0]]
            }
            for site in sites:
                site.module.said = site.returned = None
            with model.cache_context(context):
                (output,) = model(**arguments, **fixed, return_dict=False)

            whole = model.rows == arguments["hidden_states"].shape[0]
            assert whole or 2 * model.rows == arguments["hidden_states"].shape[0]
            present = branches if whole else ("cond",)
            for number, site in enumerate(sites):
                letter = "s" if site.module.said is None else "C"
                for branch in branches:
                    key = f"{branch}.{number}"
                    decisions[key] = decisions.get(key, "") + (letter if branch in present else "-")
                for member, tensor in enumerate(site.returned):
                    for branch, rows in zip(present, tensor.chunk(len(present)), strict=True):
                        stacks.setdefault((branch, number, member), []).append(rows)
            if guided:
                decisions["guide"] = decisions.get("guide", "") + ("C" if whole else "s")
                for branch, rows in zip(branches, output.chunk(2), strict=True):
                    guide[branch].append(rows)

    for site in sites:
        check_kind(site, config)
    tensors = {".".join(map(str, key)): torch.stack(stacks[key]) for key in sorted(stacks)}
    if guided:
        tensors.update({f"guide.{branch}": torch.stack(guide[branch]) for branch in ("cond", "uncond")})

    metadata = {
        "name": f"{trajectory.stem}-{dtype}",
        "family": trajectory.family,
        "method": trajectory.method,
        "dtype": dtype,
        "seed": str(seed),
        "steps": str(len(trajectory.timesteps)),
        "timesteps": text(trajectory.timesteps),
        "timestep_max": "1000.0",
        "cfg": trajectory.cfg,
        "branches": text(trajectory.branches),
        "sites": text([site.kind for site in sites]),
        "site_names": text([site.name for site in sites]),
        "members": text([len(site.returned) for site in sites]),
        "held_bytes": str(held_bytes(model)),
        **config_text(config, trajectory, dtype),
        **{f"decisions.{key}": letters for key, letters in sorted(decisions.items())},
        **versions(),
    }
    return tensors, metadata


def config_text(config, trajectory, dtype):
    values = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
    words = {f"config.{name}": text(value) for name, value in values.items() if not callable(value)}
    for name in [name for name in words if name.endswith("_callback")]:
        del words[name]
    if trajectory.attention_weight is not None:
        words["config.attention_weight"] = text(trajectory.attention_weight)
    if trajectory.method == "taylorseer":
        words["factor_dtype"] = text(config.taylor_factors_dtype or DTYPES[dtype])
    return words


def text(value):
    if isinstance(value, (list, tuple)):
        return " ".join(map(text, value))
    if isinstance(value, torch.dtype):
        return DTYPE_NAMES[value]
    return value if isinstance(value, str) else repr(value)


def generate(folder):
    import diffusers

    diffusers.logging.set_verbosity_error()
    warnings.filterwarnings("ignore", "torch.meshgrid")
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.backends.mkldnn.enabled = False
    folder.mkdir(parents=True, exist_ok=True)
    for stale in folder.glob("*.safetensors"):
        stale.unlink()
    for number, trajectory in enumerate(trajectories()):
        for dtype in trajectory.dtypes:
            seed = 100 * list(DTYPES).index(dtype) + number
            tensors, metadata = record(trajectory, dtype, seed)
            write_safetensors(folder / f"{metadata['name']}.safetensors", tensors, metadata)


# ---- an independent look at the recordings ----


def numbers(words):
    return [float(word) for word in words.split()]


class Recording:
    def __init__(self, path):
        with safe_open(path, framework="pt") as file:
            self.meta = file.metadata()
            self.tensors = {name: widen(file.get_tensor(name)) for name in file.keys()}
        self.dtype, self.method = self.meta["dtype"], self.meta["method"]
        self.timesteps = numbers(self.meta["timesteps"])
        self.branches = self.meta["branches"].split()
        self.sites = self.meta["sites"].split()
        self.members = [int(word) for word in self.meta["members"].split()]
        assert len(self.timesteps) == int(self.meta["steps"])
        assert len(self.sites) == len(self.members) == len(self.meta["site_names"].split())

    def config(self, name):
        word = self.meta[f"config.{name}"]
        return None if word == "None" else float(word)

    def within(self, name, t):
        low, high = numbers(self.meta[f"config.{name}"])
        return low < t < high

    def skip_range(self, kind):
        return int(self.config(f"{kind}_attention_block_skip_range"))

    def expected_names(self):
        names = {
            f"{branch}.{site}.{member}"
            for branch in self.branches
            for site, members in enumerate(self.members)
            for member in range(members)
        }
        return names | ({"guide.cond", "guide.uncond"} if "decisions.guide" in self.meta else set())


def same(ours, recorded):
    """Equal in every bit, the sign of a zero included."""
    return np.array_equal(ours.view(np.uint32), recorded.view(np.uint32))


def taylorseer_schedule(recording):
    before = recording.config("disable_cache_before_step")
    after = recording.config("disable_cache_after_step")
    interval = recording.config("cache_interval")

    def computes(step):
        due = (step - before - 1) % interval == 0
        return step < before or due or (after is not None and step >= after)

    return "".join("C" if computes(step) else "s" for step in range(len(recording.timesteps)))


def pab_schedule(recording, kind):
    every, letters = recording.skip_range(kind), ""
    for step, t in enumerate(recording.timesteps):
        inside = recording.within(f"{kind}_attention_timestep_skip_range", t)
        letters += "C" if step == 0 or not inside or step % every == 0 else "s"
    return letters


def guide_schedule(recording):
    every, letters = recording.config("unconditional_batch_skip_range"), ""
    for step, t in enumerate(recording.timesteps):
        inside = recording.within("unconditional_batch_timestep_skip_range", t)
        letters += "s" if step > 0 and inside and step % every != 0 else "C"
    return letters


def fastercache_schedule(recording, kind, guide):
    """Attention of the conditional rows; `guide` is None for a distilled model."""
    every, letters = recording.skip_range(kind), ""
    for step, t in enumerate(recording.timesteps):
        inside = recording.within(f"{kind}_attention_timestep_skip_range", t)
        skip = inside and not (step > 0 and step % every == 0)
        letters += "s" if skip and (guide is None or guide[step] == "s") else "C"
    return letters


def expected_decisions(recording):
    """Every decision of a file, from its timesteps and its parameters."""
    guide = None
    if recording.method == "fastercache" and recording.meta["config.is_guidance_distilled"] == "False":
        guide = guide_schedule(recording)
    expected = {} if guide is None else {"guide": guide}
    for branch in recording.branches:
        for site, kind in enumerate(recording.sites):
            if recording.method == "taylorseer":
                letters = taylorseer_schedule(recording)
            elif recording.method == "pab":
                letters = pab_schedule(recording, kind)
            else:
                letters = fastercache_schedule(recording, kind, guide)
                if branch == "uncond":
                    letters = guide.replace("s", "-")
            expected[f"{branch}.{site}"] = letters
    return expected


class TaylorSeer:
    """The ladder: each operation rounds to the tensors' dtype, what is kept rounds to the factors' dtype."""

    def __init__(self, recording):
        self.dtype, self.factor_dtype = recording.dtype, recording.meta["factor_dtype"]
        self.max_order = int(recording.config("max_order"))
        self.factors, self.updated = [], None

    def round(self, values):
        return rounded(values, self.dtype)

    def computed(self, step, values):
        ladder = [values]
        if self.updated is not None:
            gap = np.float32(step - self.updated)
            for kept in self.factors[: self.max_order]:
                change = self.round(ladder[-1] - self.round(kept))
                ladder.append(self.round(change / gap))
        self.factors = [rounded(factor, self.factor_dtype) for factor in ladder]
        self.updated = step

    def skipped(self, step):
        distance = step - self.updated
        output = np.float32(0)  # a negative zero does not outlive the first sum
        for order, factor in enumerate(self.factors):
            weight = np.float32(distance**order / math.factorial(order))
            output = self.round(output + self.round(self.round(factor) * weight))
        return output


class Pab:
    def __init__(self, recording):
        self.kept = None

    def computed(self, step, values):
        self.kept = values

    def skipped(self, step):
        return self.kept


class FasterCache:
    """The pair; an extrapolation enters it like a computed value."""

    def __init__(self, recording):
        self.dtype, self.weight = recording.dtype, np.float32(recording.config("attention_weight"))
        self.older = self.newer = None

    def computed(self, step, values):
        self.older, self.newer = values if self.newer is None else self.newer, values

    def skipped(self, step):
        change = rounded(self.newer - self.older, self.dtype)
        output = rounded(self.newer + rounded(change * self.weight, self.dtype), self.dtype)
        self.computed(step, output)
        return output


METHODS = {"taylorseer": TaylorSeer, "pab": Pab, "fastercache": FasterCache}


def verify_site(recording, branch, site, member, letters):
    """Derives each skipped output again from the computed ones before it."""
    rows = recording.tensors[f"{branch}.{site}.{member}"]
    assert len(rows) == len(letters) - letters.count("-")
    rule, row = METHODS[recording.method](recording), 0
    for step, letter in enumerate(letters):
        if letter == "-":
            continue
        if letter == "C":
            rule.computed(step, rows[row])
        else:
            assert same(rule.skipped(step), rows[row]), f"step {step}: skipped output"
        row += 1


def frames_first(values, tensor_format):
    return np.swapaxes(values, 1, 2) if tensor_format == "BCFHW" else values


def disc(height, width):
    """The low frequencies, in the order of the FFT."""
    row, column = (np.fft.fftfreq(n, 1 / n) for n in (height, width))
    return row[:, None] ** 2 + column**2 <= (min(height, width) // 5) ** 2


def spacing(values, dtype):
    """The distance of the numbers of a half format around each value."""
    digits, lowest = (11, -14) if dtype == "f16" else (8, -126)
    exponent = np.frexp(values)[1] - 1
    return np.where(values == 0, 0.0, np.ldexp(1.0, np.maximum(exponent, lowest) - digits + 1))


def verify_guide(recording, letters):
    """Estimates the unconditional predictions again, in float64, rounded once. Returns what differed.

    The result is (elements, how many of them differ in their bits, the largest error by the largest element).
    """
    tensor_format = recording.meta["config.tensor_format"]
    alphas = [recording.config(f"alpha_{part}_frequency") for part in ("low", "high")]
    elements = different = 0
    error = 0.0
    for step, t in enumerate(recording.timesteps):
        conditional, unconditional = (
            frames_first(recording.tensors[f"guide.{branch}"][step].astype(np.float64), tensor_format)
            for branch in ("cond", "uncond")
        )
        if letters[step] == "C":
            change = np.fft.fft2(unconditional - conditional)
            low = disc(*change.shape[-2:])
            weights = [1.0, 1.0]
            continue
        for i, part in enumerate(("low", "high")):
            if recording.within(f"{part}_frequency_weight_update_timestep_range", t):
                weights[i] *= alphas[i]
        exact = conditional + np.fft.ifft2(change * np.where(low, *weights)).real
        largest = np.abs(exact).max()
        allowed = FFT_BAND * largest
        if recording.dtype != "f32":
            allowed = allowed + spacing(np.maximum(np.abs(exact), np.abs(unconditional)), recording.dtype) / 2
        distance = np.abs(unconditional - exact)
        assert np.all(distance <= allowed), f"step {step}: estimate is off by {distance.max()}"
        elements += exact.size
        different += np.count_nonzero(unconditional != rounded(exact, recording.dtype))
        error = max(error, distance.max() / largest)
    return elements, different, error


def verify_file(path):
    """Checks a file; yields (what, letters) for every different row of decisions, and (what, remark)."""
    recording = Recording(path)
    assert set(recording.tensors) == recording.expected_names()
    expected = expected_decisions(recording)
    found = {
        key.removeprefix("decisions."): letters
        for key, letters in recording.meta.items()
        if key.startswith("decisions.")
    }
    assert found == expected, f"{path.name}: decisions {found} are not {expected}"

    rows = {}
    for branch in recording.branches:
        for site, kind in enumerate(recording.sites):
            letters = found[f"{branch}.{site}"]
            rows.setdefault((branch, letters), []).append(f"{site}:{kind}")
            for member in range(recording.members[site]):
                try:
                    verify_site(recording, branch, site, member, letters)
                except AssertionError as error:
                    raise AssertionError(f"{path.name}, {branch}.{site}.{member}, {error}") from error
    for (branch, letters), sites in rows.items():
        yield f"{branch:<6} {letters}", " ".join(sites)
    if "guide" in found:
        try:
            elements, different, error = verify_guide(recording, found["guide"])
        except AssertionError as error:
            raise AssertionError(f"{path.name}, guide, {error}") from error
        yield f"guide  {found['guide']}", f"{different} of {elements} rounded otherwise, error {error:.1e}"


def verify(folder):
    """Checks every file, and prints the decisions."""
    files = sorted(folder.glob("*.safetensors"))
    assert files, f"no recordings in {folder}"
    for path in files:
        print(path.stem)
        with np.errstate(all="ignore"):
            for what, remark in verify_file(path):
                print(f"  {what}  {remark}")
    size = sum(path.stat().st_size for path in files)
    print(f"{len(files)} files, {size / 1e6:.2f} MB: decisions and outputs follow the rules")


if __name__ == "__main__":
    run(__doc__, "layers", generate, verify)
