# For test.sh and bench.sh, which source this: where things are, and whether there is a GPU to run them on.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
target=$(realpath -m "${CARGO_TARGET_DIR:-target}")
gpu=$target/gpu
work=$target/gpu-work # what is made on the way
mkdir -p "$work"

if ! nvidia-smi -L >/dev/null 2>&1; then
    echo "SKIPPED: there is no GPU here. Take this source tree with target/gpu.tar.gz (made by scripts/gpu/build.sh) to a"
    echo "machine that has one, and the CUDA toolkit, and run scripts/gpu/$(basename "$0") there."
    exit 0
fi
if [ "$gpu.tar.gz" -nt "$gpu/unpacked" ]; then
    rm -rf "$gpu"
    tar -xzf "$gpu.tar.gz" -C "$target"
    touch "$gpu/unpacked"
fi
if ! [ -x "$gpu/bin/digits" ]; then
    echo "target/gpu is missing: run scripts/gpu/build.sh where there is cargo"
    exit 1
fi
export LD_LIBRARY_PATH=$gpu/prefix/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
PATH=$PATH:/usr/local/cuda/bin

digits=("$gpu/bin/digits" --backend cuda --weights examples/digits/weights.safetensors --out "$work/digits.png")

build_bandwidth() { nvcc -O2 scripts/gpu/bandwidth.c -o "$work/bandwidth" -lcuda; }
