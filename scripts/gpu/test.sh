#!/usr/bin/env bash
# The test suite on a real GPU, from what build.sh made; then kernels and demo under compute-sanitizer. One line for
# each program; what it said is in target/gpu-work.
source "$(dirname "$0")/common.sh"
export DC_TEST_BACKEND=cuda CARGO_MANIFEST_DIR=$PWD
passed=0 failed=0 skipped=0

# try NAME COMMAND... A program that cannot test anything here, for example without the driver's stand-in, exits with 77.
try() {
    local log=$work/${1// /-}.log code=0
    "${@:2}" >"$log" 2>&1 || code=$?
    case $code in
    0)
        passed=$((passed + 1))
        echo "ok      $1"
        ;;
    77)
        skipped=$((skipped + 1))
        echo "skipped $1"
        ;;
    *)
        failed=$((failed + 1))
        echo "FAILED  $1 ($code): $log"
        tail -n 20 "$log"
        ;;
    esac
}

nvidia-smi --query-gpu=name,driver_version --format=csv,noheader
for program in "$gpu"/tests/rust/* "$gpu"/tests/c/*; do
    try "$(basename "$(dirname "$program")") $(basename "$program")" timeout 300 "$program"
done
try "demo model" "${digits[@]}" --check examples/digits/vector.safetensors
try "demo smoke" "${digits[@]}" --smoke
try "kernels build" build_bandwidth
try "kernels" "$work/bandwidth" --check kernels/ptx

sanitizer=$(command -v compute-sanitizer || echo /usr/local/cuda/compute-sanitizer/compute-sanitizer)
for tool in memcheck racecheck initcheck synccheck; do
    sanitized=("$sanitizer" --tool "$tool" --error-exitcode 9)
    try "$tool kernels" timeout 300 "${sanitized[@]}" "$work/bandwidth" --check kernels/ptx
    try "$tool demo" timeout 300 "${sanitized[@]}" "${digits[@]}" --smoke
done
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" = 0 ]
