#!/usr/bin/env python3
"""Trains the demo's model and writes the two files the C engine reads.

A class-conditional diffusion transformer (DiT, arXiv:2212.09748) learns the 8x8 handwritten digits that
ship with scikit-learn, upsampled to 16x16, by flow matching:

    x_t = (1 - t) * image + t * noise,    the model predicts  dx_t/dt = noise - image

In a tenth of the examples the label is replaced by NULL, so that one network gives both predictions of
classifier-free guidance. What is exported is the running average of the weights, rounded to f16:

    weights.safetensors   every parameter
    vector.safetensors    inputs and this program's outputs, computed with the rounded weights in f32:
                          the C engine must reproduce them (`digits --check vector.safetensors`)
    samples.png           pictures of the result, to look at (only with --samples)

Needs torch, scikit-learn and safetensors. 2,500 iterations take 5 to 12 minutes on one core.
"""

import argparse
import math
import pathlib
import struct
import time
import zlib

import torch
import torch.nn.functional as F
from torch import nn

SIDE, PATCH = 16, 2
TOKENS = (SIDE // PATCH) ** 2
BLOCKS, WIDTH, HEADS = 8, 64, 4
CLASSES, NULL = 10, 10  # labels 0..9, and NULL for "no label"


class Block(nn.Module):
    """Self-attention and an MLP; the condition sets scale, shift and gate of both (adaLN-Zero)."""

    def __init__(self):
        super().__init__()
        self.modulation = nn.Linear(WIDTH, 6 * WIDTH)
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.proj = nn.Linear(WIDTH, WIDTH)
        self.up = nn.Linear(WIDTH, 4 * WIDTH)
        self.down = nn.Linear(4 * WIDTH, WIDTH)
        nn.init.zeros_(self.modulation.weight)  # every block starts as the identity
        nn.init.zeros_(self.modulation.bias)

    def forward(self, x, condition):
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(F.silu(condition))[:, None].chunk(6, dim=-1)
        h = F.layer_norm(x, (WIDTH,)) * (1 + scale1) + shift1
        q, k, v = self.qkv(h).unflatten(-1, (3, HEADS, WIDTH // HEADS)).permute(2, 0, 3, 1, 4)
        x = x + gate1 * self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        h = F.layer_norm(x, (WIDTH,)) * (1 + scale2) + shift2
        return x + gate2 * self.down(F.gelu(self.up(h), approximate="tanh"))


class DiT(nn.Module):
    """Velocity of images x [N,1,16,16] at times t [N] in 0..1 for labels [N]."""

    def __init__(self):
        super().__init__()
        self.patch = nn.Linear(PATCH * PATCH, WIDTH)
        self.position = nn.Parameter(torch.randn(TOKENS, WIDTH) * 0.02)
        self.label = nn.Embedding(CLASSES + 1, WIDTH)
        self.time1 = nn.Linear(WIDTH, WIDTH)
        self.time2 = nn.Linear(WIDTH, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(BLOCKS))
        self.final_modulation = nn.Linear(WIDTH, 2 * WIDTH)
        self.final = nn.Linear(WIDTH, PATCH * PATCH)
        nn.init.zeros_(self.final.weight)
        nn.init.zeros_(self.final.bias)

    def forward(self, x, t, label):
        frequency = torch.exp(-math.log(10_000) * torch.arange(WIDTH // 2) / (WIDTH // 2))
        angle = 1000 * t[:, None] * frequency
        condition = self.time2(F.silu(self.time1(torch.cat([angle.cos(), angle.sin()], dim=-1)))) + self.label(label)

        x = self.patch(F.unfold(x, PATCH, stride=PATCH).transpose(1, 2)) + self.position
        for block in self.blocks:
            x = block(x, condition)
        shift, scale = self.final_modulation(F.silu(condition))[:, None].chunk(2, dim=-1)
        x = self.final(F.layer_norm(x, (WIDTH,)) * (1 + scale) + shift)
        return F.fold(x.transpose(1, 2), (SIDE, SIDE), PATCH, stride=PATCH)


def digits():
    """Images [1797,1,16,16] in -1..1 and their labels."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    images = torch.tensor(images, dtype=torch.float32).view(-1, 1, 8, 8) / 8 - 1
    return F.interpolate(images, (SIDE, SIDE), mode="bilinear"), torch.tensor(labels)


def train(args):
    """Returns the model with the running average of its weights."""
    images, labels = digits()
    model = DiT()
    average = [p.detach().clone() for p in model.parameters()]
    optimiser = torch.optim.AdamW(model.parameters(), args.rate, weight_decay=0.01)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {len(images)} images", flush=True)

    start, recent = time.time(), 0.0
    for i in range(args.iterations):
        cosine = 0.5 * (1 + math.cos(math.pi * i / args.iterations))
        optimiser.param_groups[0]["lr"] = args.rate * min(1, (i + 1) / args.warmup) * cosine

        pick = torch.randint(len(images), (args.batch,))
        image, noise = images[pick], torch.randn(args.batch, 1, SIDE, SIDE)
        label = torch.where(torch.rand(args.batch) < args.drop, NULL, labels[pick])
        t = torch.sigmoid(torch.randn(args.batch))  # logit-normal: most of the work in the middle
        x = torch.lerp(image, noise, t[:, None, None, None])

        loss = F.mse_loss(model(x, t, label), noise - image)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        for kept, p in zip(average, model.parameters()):
            kept.lerp_(p.detach(), 1 - args.ema)

        recent += (loss.item() - recent) / min(i + 1, 100)
        if (i + 1) % 100 == 0:
            print(f"iteration {i + 1:5}  loss {recent:.4f}  {time.time() - start:4.0f} s", flush=True)

    for kept, p in zip(average, model.parameters()):
        p.data.copy_(kept)
    return model.eval()


@torch.no_grad()
def sample(model, labels, steps, guidance):
    """Euler from t = 1 (noise) to t = 0, as the C engine does it."""
    x = torch.randn(len(labels), 1, SIDE, SIDE)
    times = torch.linspace(1, 0, steps + 1)
    both = torch.cat([torch.full_like(labels, NULL), labels])
    for now, then in zip(times[:-1], times[1:]):
        uncond, cond = model(torch.cat([x, x]), now.expand(len(both)), both).chunk(2)
        x = x + (then - now) * (uncond + guidance * (cond - uncond))
    return x


def write_png(path, grey):
    """`grey`: bytes [height, width]."""
    height, width = grey.shape
    rows = b"".join(b"\0" + bytes(row.tolist()) for row in grey)

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


@torch.no_grad()
def export(model, out):
    from safetensors.torch import save_file

    weights = {name: p.half().contiguous() for name, p in model.state_dict().items()}
    save_file(weights, out / "weights.safetensors")

    model.load_state_dict({name: p.float() for name, p in weights.items()})
    label = torch.arange(CLASSES + 1)
    t = torch.linspace(0.02, 1, len(label))
    x = torch.randn(len(label), 1, SIDE, SIDE)
    vector = {"x": x, "t": t, "label": label.int(), "velocity": model(x, t, label)}
    save_file({name: v.contiguous() for name, v in vector.items()}, out / "vector.safetensors")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iterations", type=int, default=2500)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rate", type=float, default=1e-3, help="peak learning rate; cosine to 0 (default %(default)s)")
    parser.add_argument("--warmup", type=int, default=200, help="iterations of linear warm-up (default %(default)s)")
    parser.add_argument("--ema", type=float, default=0.995, help="decay of the running average (default %(default)s)")
    parser.add_argument("--drop", type=float, default=0.1, help="share of labels replaced by NULL (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--samples", action="store_true", help="also write samples.png")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path(__file__).parent)
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    model = train(args)
    export(model, args.out)  # from here on the model holds the rounded weights
    if args.samples:
        x = sample(model, torch.arange(50) % CLASSES, steps=50, guidance=3.0).clamp(-1, 1)
        x = F.pad(x.squeeze(1), (1, 1, 1, 1))  # a grey frame
        sheet = x.unflatten(0, (5, CLASSES)).transpose(1, 2).flatten(0, 1).flatten(1)
        sheet = sheet.repeat_interleave(4, 0).repeat_interleave(4, 1)
        write_png(args.out / "samples.png", ((sheet + 1) * 127.5).round().byte())


if __name__ == "__main__":
    main()
