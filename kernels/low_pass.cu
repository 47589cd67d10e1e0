// The low frequencies of planes: of each plane those waves stay that have ky^2 + kx^2 <= r^2 whole
// turns over it.
//
// A truncated transform in four short steps, as on the host, a block a plane: along the rows to kx
// = 0 .. r, along the columns to ky = -r .. r, and both ways back. The plane is real, so waves of
// kx < 0 are mirror images of these.
//
// Launch: low_pass<<<planes, 256, shared>>>. Dynamic shared memory, where `shared` gives its bytes:
//
//     0                                                           for r = 0
//     min(8 * (max(height, width) + max((2r + 1) * (r + 1), 16 * (r + 1))), 48128)    otherwise
//
// Any size from 24 * (r + 1) on gives the same numbers, some slower; 48128 bytes and the block's
// own stay below the 48 KB that every GPU has, and suffice up to r = 2004. The plane's own part of
// `out` holds what else there is in between: what the rows became, 2 (r + 1) <= width floats each,
// and behind it what the columns became, where shared memory is too small. For that there is room
// in every plane of r >= 2, since its sides are at least 5 r; of r = 1 it fits 24 * (r + 1) bytes.
#include "sums.cuh"

// Products are added in f32, this many of them; the sums of these in f64.
enum : u32 { TERMS_IN_F32 = 32 };

struct Complex {
    float re, im;
};

struct WideComplex {
    double re, im;
};

extern __shared__ Complex shared_memory[];

// ---- turns ----

// Cosine and sine of phase / period of a turn. The nearest quarter turn is taken off in whole
// numbers, so that what is left is small, and its rounding too.
__device__ __forceinline__ Complex turn(u32 phase, u32 period) {
    const u64 eighths = 8ull * phase, whole = period;
    const u32 quarters = (eighths >= whole) + (eighths >= 3 * whole) + (eighths >= 5 * whole) +
                         (eighths >= 7 * whole);
    const float rest = (float)(int)(4ull * phase - quarters * whole);
    float sine, cosine;
    sincospif(0.5f * __fdiv_rn(rest, (float)period), &sine, &cosine);
    const float re = quarters & 1 ? sine : cosine, im = quarters & 1 ? cosine : sine;
    return {(quarters + 1) & 2 ? -re : re, quarters & 2 ? -im : im};
}

// The turns of a period; with TABLE they are looked up at the start of shared memory, which has
// those of one period at a time.
template <bool TABLE> struct Turns {
    u32 period;

    // For all threads together, none of which needs the turns of another period any more.
    __device__ __forceinline__ explicit Turns(u32 of_period) : period(of_period) {
        if constexpr (TABLE) {
            for (u32 phase = threadIdx.x; phase < period; phase += THREADS)
                shared_memory[phase] = turn(phase, period);
            __syncthreads();
        }
    }

    __device__ __forceinline__ Complex at(u32 phase) const {
        return TABLE ? shared_memory[phase] : turn(phase, period);
    }

    __device__ __forceinline__ u32 after(u32 phase, u32 step) const {
        const u32 left = period - step;
        return phase >= left ? phase - left : phase + step;
    }
};

// ---- sums of waves ----

__device__ __forceinline__ void add_product(Complex &sum, float value, Complex wave) {
    sum.re = __fmaf_rn(value, wave.re, sum.re);
    sum.im = __fmaf_rn(value, wave.im, sum.im);
}

__device__ __forceinline__ void add_product(Complex &sum, Complex value, Complex wave) {
    add_product(sum, value.re, wave);
    sum.re = __fmaf_rn(-value.im, wave.im, sum.re);
    sum.im = __fmaf_rn(value.im, wave.re, sum.im);
}

enum Direction { THERE, BACK };

// sum_i term(i) * turn(phase + i * step), or minus that turn on the way there.
template <Direction DIRECTION, bool TABLE, class Term>
__device__ __forceinline__ WideComplex sum_of_waves(u32 n, const Turns<TABLE> &turns, u32 phase,
                                                    u32 step, Term term) {
    WideComplex sum = {};
#pragma unroll 1
    for (u32 start = 0; start < n; start += TERMS_IN_F32) {
        const u32 end = min(start + TERMS_IN_F32, n);
        Complex part = {};
#pragma unroll(TABLE ? 4 : 1)
        for (u32 i = start; i < end; i++) {
            Complex wave = turns.at(phase);
            if (DIRECTION == THERE) wave.im = -wave.im;
            add_product(part, term(i), wave);
            phase = turns.after(phase, step);
        }
        sum.re += part.re;
        sum.im += part.im;
    }
    return sum;
}

// ---- memory in between ----

// Pairs of floats, in shared memory or in `out`, where they need not be aligned as pairs.
struct Pairs {
    float *data;

    __device__ __forceinline__ Complex operator[](u64 i) const {
        return {data[2 * i], data[2 * i + 1]};
    }

    __device__ __forceinline__ void set(u64 i, WideComplex value, double scale) const {
        data[2 * i] = (float)(value.re * scale);
        data[2 * i + 1] = (float)(value.im * scale);
    }
};

// ---- the four steps ----

template <bool TABLE> struct LowPass {
    const float *x;
    float *out;
    u32 height, width, r;
    // Frequencies from 0 up along x, from -r up along y.
    u32 kx_count, ky_count;
    // What shared memory has behind the table: room for so many pairs.
    Complex *area;
    u32 area_len;
    // [y][kx]
    Pairs rows;
    // [ky][kx]
    Pairs spectrum;

    __device__ __forceinline__ LowPass(const float *x, float *out, u32 height, u32 width, u32 r,
                                       Complex *area, u32 area_len)
        : x(x), out(out), height(height), width(width), r(r), kx_count(r + 1), ky_count(2 * r + 1),
          area(area), area_len(area_len), rows{out},
          spectrum{ky_count * kx_count <= area_len ? (float *)area
                                                   : out + 2 * (u64)height * kx_count} {}

    // The factor between there and back is shared by both ways there, so that no sum outgrows its
    // terms.
    __device__ __forceinline__ void rows_there() const {
        const Turns<TABLE> turns(width);
        for (u64 i = threadIdx.x; i < (u64)height * kx_count; i += THREADS) {
            const u64 y = quotient(i, kx_count);
            const u32 kx = i - y * kx_count;
            const auto value = [&](u32 at) { return __ldg(x + y * width + at); };
            rows.set(i, sum_of_waves<THERE>(width, turns, 0, kx, value), 1.0 / width);
        }
    }

    // Outside the disc there is nothing.
    __device__ __forceinline__ void columns_there() const {
        const Turns<TABLE> turns(height);
        for (u32 i = threadIdx.x; i < ky_count * kx_count; i += THREADS) {
            const u32 kx = i % kx_count, from_lowest = i / kx_count;
            const u32 ky = from_lowest < r ? r - from_lowest : from_lowest - r;
            const u32 step = from_lowest < r ? height - ky : ky;
            const auto value = [&](u32 y) { return rows[(u64)y * kx_count + kx]; };
            const bool inside = (u64)ky * ky + (u64)kx * kx <= (u64)r * r;
            spectrum.set(i, sum_of_waves<THERE>(inside ? height : 0, turns, 0, step, value),
                         1.0 / height);
        }
    }

    // A wave and its mirror image add up to twice the real part of one.
    __device__ __forceinline__ void columns_back() const {
        const Turns<TABLE> turns(height);
        for (u64 i = threadIdx.x; i < (u64)height * kx_count; i += THREADS) {
            const u32 y = quotient(i, kx_count), kx = i - (u64)y * kx_count;
            // That of -r, where the sum starts, in whole numbers.
            const u64 lowest = (u64)(height - r) * y;
            const u32 phase = lowest - quotient(lowest, height) * height;
            const auto value = [&](u32 ky) { return spectrum[ky * kx_count + kx]; };
            rows.set(i, sum_of_waves<BACK>(ky_count, turns, phase, y, value), kx == 0 ? 1 : 2);
        }
    }

    // What a row became lies before where the row itself will be. So the last rows go first, and
    // those that are about to be written are read from shared memory.
    __device__ __forceinline__ void rows_back() const {
        const Turns<TABLE> turns(width);
        const u32 batch = min(area_len / kx_count, height);
        u32 count;
        for (u32 end = height; end > 0; end -= count) {
            count = min(end, batch);
            const u32 begin = end - count;
            __syncthreads();
            for (u32 i = threadIdx.x; i < count * kx_count; i += THREADS)
                area[i] = rows[(u64)begin * kx_count + i];
            __syncthreads();
            for (u64 i = threadIdx.x; i < (u64)count * width; i += THREADS) {
                const u32 y = quotient(i, width), at = i - (u64)y * width;
                const auto value = [&](u32 kx) { return area[y * kx_count + kx]; };
                out[(u64)begin * width + i] =
                    (float)sum_of_waves<BACK>(kx_count, turns, 0, at, value).re;
            }
        }
    }

    // For all threads of the block together.
    __device__ __forceinline__ void run() const {
        rows_there();
        __syncthreads();
        columns_there();
        __syncthreads();
        columns_back();
        __syncthreads();
        rows_back();
        __syncthreads();
    }
};

// Without any wave there is the mean.
__device__ __forceinline__ void mean_of_plane(const float *x, float *out, u64 len) {
    __shared__ float mean;
    double sum[1] = {};
    for (u64 start = threadIdx.x; start < len; start += THREADS * TERMS_IN_F32) {
        float part = 0;
        for (u64 i = start; i < min(start + THREADS * TERMS_IN_F32, len); i += THREADS)
            part += __ldg(x + i);
        sum[0] += part;
    }
    sum_over_block(sum);
    if (threadIdx.x == 0) mean = (float)(sum[0] / (double)len);
    __syncthreads();
    for (u64 i = threadIdx.x; i < len; i += THREADS) out[i] = mean;
    __syncthreads();
}

extern "C" __global__ void __launch_bounds__(THREADS)
    low_pass(const float *x, float *out, u64 planes, u32 height, u32 width, u32 r, u32 shared) {
    const u64 len = (u64)height * width;
    const u32 room = shared / sizeof(Complex), table = max(height, width);
    for (u64 plane = blockIdx.x; plane < planes; plane += gridDim.x) {
        const float *from = x + plane * len;
        float *to = out + plane * len;
        if (r == 0)
            mean_of_plane(from, to, len);
        else if (table + 3 * (r + 1) <= room)
            LowPass<true>(from, to, height, width, r, shared_memory + table, room - table).run();
        else
            LowPass<false>(from, to, height, width, r, shared_memory, room).run();
    }
}
