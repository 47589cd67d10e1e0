#!/usr/bin/env bash
# Measures on a GPU, from what build.sh made, and writes the figures as one Markdown document: bench.sh [FILE]. FILE is
# docs/gpu-figures.md unless given, and is only written when all went well. Needs nvcc with cuBLAS, cmake, and a Python
# with PyTorch, and with diffusers for its column; takes some minutes.
source "$(dirname "$0")/common.sh"
file=${1:-docs/gpu-figures.md}
draft=$work/figures.md

field() { nvidia-smi --query-gpu="$1" --format=csv,noheader --id=0; }

head_of_document() {
    local toolkit cpu version
    toolkit=$(nvcc --version | sed -n 's/.*release \([0-9.]*\).*/\1/p')
    cpu=$(sed -n 's/^model name.*: //p' /proc/cpuinfo | head -n 1)
    version=$(sed -n 's/^version *= *"\(.*\)"/\1/p' Cargo.toml | head -n 1)
    cat <<END
# Figures from a GPU

libdiffcache $version on $(field name), driver $(field driver_version), CUDA toolkit $toolkit, $cpu; $(date +%F).
Written by \`make gpu-bench\`.

What was aimed at: kernels at 0.85 of the copy's bandwidth from 64 MB on; asking costs at most 0.1 % at FLUX's shapes;
a decision 4 times as fast as diffusers' hook and 1.2 times as fast as torch.compile.
END
}

# section TITLE COMMAND...
section() {
    echo "bench.sh: $1" >&2
    printf '\n## %s\n\n' "$1"
    "${@:2}"
}

block_loop() { "$work/block_loop/block_loop" "$@"; }

demo() {
    echo '```'
    "${digits[@]}" --compare
    echo '```'
}

rivals() { python3 scripts/gpu/rivals.py "$gpu/prefix/lib"; }

build_bandwidth
cmake --log-level=WARNING -S examples/block_loop -B "$work/block_loop" -DCMAKE_PREFIX_PATH="$gpu/prefix" >/dev/null
cmake --build "$work/block_loop" >/dev/null
{
    head_of_document
    section "Kernels" "$work/bandwidth" kernels/ptx
    section "Cost and saving at FLUX's shapes" block_loop
    section "Cost and saving at Wan's shapes" block_loop --wan --steps 6 --repeat 1
    section "Decisions, beside PyTorch" rivals
    section "The demo" demo
} >"$draft"
mkdir -p "$(dirname "$file")"
mv "$draft" "$file"
echo "$file"
