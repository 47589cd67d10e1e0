#!/usr/bin/env bash
# Builds all that test.sh and bench.sh need of cargo into target/gpu, and packs it as target/gpu.tar.gz. Either can be
# taken, with this source tree, to a machine that has a GPU and the CUDA toolkit, but no cargo. Needs neither GPU nor
# toolkit.
set -euo pipefail
cd "$(dirname "$0")/../.."
target=$(realpath -m "${CARGO_TARGET_DIR:-target}")
gpu=$target/gpu

make --no-print-directory -s prefix
rm -rf "$gpu"
mkdir -p "$gpu/tests/c" "$gpu/tests/rust" "$gpu/bin"
cp -rL "$target/prefix" "$gpu/prefix" # plain files only
rm "$gpu/prefix/lib/libdiffcache.a"

# The Rust tests, as `cargo test` builds them; not the header's, which concerns no device.
cargo test --lib --tests --no-run --message-format=json |
    sed -n 's/.*"executable":"\([^"]*\)".*/\1/p' |
    while read -r program; do
        name=$(basename "$program" | sed 's/-[0-9a-f]*$//')
        [ "$name" = header ] || strip "$program" -o "$gpu/tests/rust/$name"
    done

# The C and C++ tests, and the demo.
cmake --log-level=WARNING -G Ninja -S tests/capi -B "$target/gpu-capi" -DCMAKE_BUILD_TYPE=Release \
    -DCMAKE_PREFIX_PATH="$target/prefix" >/dev/null
cmake --build "$target/gpu-capi" >/dev/null
for source in tests/capi/*.c tests/capi/*.cpp; do
    name=$(basename "${source%.*}")
    cp "$target/gpu-capi/$name" "$gpu/tests/c/$name"
done
cp "$target/gpu-capi/examples/digits/digits" "$gpu/bin/digits"

# The engine behind rivals.py.
cc -std=c11 -O2 -fPIC -shared -I"$gpu/prefix/include" scripts/gpu/idle_engine.c -L"$gpu/prefix/lib" -ldiffcache \
    -o "$gpu/prefix/lib/libidle_engine.so"

tar -czf "$gpu.tar.gz" -C "$target" gpu # the same to carry

echo "$gpu: $(ls "$gpu"/tests/* | grep -c .) test programs and the demo; $(du -h "$gpu.tar.gz" | cut -f1) as $gpu.tar.gz"
