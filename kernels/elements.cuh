// Elements of f32, f16 and bf16 on their way from and to memory, singly or by 16 bytes.
//
// A kernel learns the dtypes of its tensors at run time; every thread of a launch takes the same
// branch. Where the loop over a tensor is inside that branch, the compiler knows the dtype. Loads
// hand out raw bits, so that a thread can have all of its loads in flight before it looks at the
// first of them. Nothing here needs a header of CUDA's: the compiler is given these files alone.
#pragma once

typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

enum Dtype : u32 { F32 = 0, F16 = 1, BF16 = 2 };

__device__ constexpr u32 size_of(u32 dtype) { return dtype == F32 ? 4 : 2; }

// ---- two narrow values in a word ----

// The conversions are volatile so that the compiler leaves them where they are needed: it would do
// them ahead of loops, on values that are not there yet.

struct Pair {
    float low, high;
};

__device__ __forceinline__ Pair widen_f16(u32 word) {
    Pair pair;
    asm volatile("{ .reg .b16 low, high; mov.b32 {low, high}, %2; cvt.f32.f16 %0, low; cvt.f32.f16 "
                 "%1, high; }"
                 : "=f"(pair.low), "=f"(pair.high)
                 : "r"(word));
    return pair;
}

__device__ __forceinline__ u32 narrow_f16(Pair pair) {
    u32 word;
    asm volatile("{ .reg .b16 low, high; cvt.rn.f16.f32 low, %1; cvt.rn.f16.f32 high, %2; mov.b32 "
                 "%0, {low, high}; }"
                 : "=r"(word)
                 : "f"(pair.low), "f"(pair.high));
    return word;
}

__device__ __forceinline__ Pair widen_bf16(u32 word) {
    return {__uint_as_float(word << 16), __uint_as_float(word & 0xffff0000)};
}

// To nearest even in the upper half; a NaN stays one.
__device__ __forceinline__ u32 round_to_upper_half(float value) {
    const u32 bits = __float_as_uint(value);
    return value != value ? bits | 0x400000 : bits + 0x7fff + (bits >> 16 & 1);
}

__device__ __forceinline__ u32 narrow_bf16(Pair pair) {
    u32 word;
#if __CUDA_ARCH__ >= 800
    asm volatile("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(pair.high), "f"(pair.low));
#else
    word = __byte_perm(round_to_upper_half(pair.low), round_to_upper_half(pair.high), 0x7632);
#endif
    return word;
}

// ---- bits and values ----

// Of LANES elements: an f32 has a word, two of the others share one. What they do not need is not
// set.
template <u32 LANES> struct Bits {
    u32 word[LANES];
};

// The two values from number i on; there is no second of one.
template <u32 LANES> __device__ __forceinline__ Pair pair_at(const float (&value)[LANES], u32 i) {
    return {value[i], i + 1 < LANES ? value[i + 1] : 0};
}

template <u32 LANES>
__device__ __forceinline__ void set_pair(float (&value)[LANES], u32 i, Pair pair) {
    value[i] = pair.low;
    if (i + 1 < LANES) value[i + 1] = pair.high;
}

template <u32 LANES>
__device__ __forceinline__ void widen(float (&value)[LANES], const Bits<LANES> &bits, u32 dtype) {
    if (dtype == F32) {
#pragma unroll
        for (u32 i = 0; i < LANES; i++) value[i] = __uint_as_float(bits.word[i]);
    } else if (dtype == F16) {
#pragma unroll
        for (u32 i = 0; i < LANES; i += 2) set_pair(value, i, widen_f16(bits.word[i / 2]));
    } else {
#pragma unroll
        for (u32 i = 0; i < LANES; i += 2) set_pair(value, i, widen_bf16(bits.word[i / 2]));
    }
}

template <u32 LANES>
__device__ __forceinline__ Bits<LANES> narrow(const float (&value)[LANES], u32 dtype) {
    Bits<LANES> bits;
    if (dtype == F32) {
#pragma unroll
        for (u32 i = 0; i < LANES; i++) bits.word[i] = __float_as_uint(value[i]);
    } else if (dtype == F16) {
#pragma unroll
        for (u32 i = 0; i < LANES; i += 2) bits.word[i / 2] = narrow_f16(pair_at(value, i));
    } else {
#pragma unroll
        for (u32 i = 0; i < LANES; i += 2) bits.word[i / 2] = narrow_bf16(pair_at(value, i));
    }
    return bits;
}

// To the values that `dtype` has.
template <u32 LANES> __device__ __forceinline__ void round_to(float (&value)[LANES], u32 dtype) {
    if (dtype == F16) {
#pragma unroll
        for (u32 i = 0; i < LANES; i += 2)
            set_pair(value, i, widen_f16(narrow_f16(pair_at(value, i))));
    } else if (dtype == BF16) {
#pragma unroll
        for (u32 i = 0; i < LANES; i += 2)
            set_pair(value, i, widen_bf16(narrow_bf16(pair_at(value, i))));
    }
}

// ---- memory ----

// The compiler cannot see that an address read from a parameter is global memory, so the
// instructions are written out; volatile keeps the loads and stores of tensors that may be the same
// in order.

__device__ __forceinline__ void load_16_bytes(u32 *word, u64 address) {
    asm volatile("ld.global.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(word[0]), "=r"(word[1]), "=r"(word[2]), "=r"(word[3])
                 : "l"(address));
}

__device__ __forceinline__ void store_16_bytes(const u32 *word, u64 address) {
    asm volatile("st.global.v4.u32 [%4], {%0, %1, %2, %3};" ::"r"(word[0]), "r"(word[1]),
                 "r"(word[2]), "r"(word[3]), "l"(address));
}

__device__ __forceinline__ u32 load_byte(u64 address) {
    u32 byte;
    asm volatile("ld.global.u8 %0, [%1];" : "=r"(byte) : "l"(address));
    return byte;
}

__device__ __forceinline__ void store_byte(u32 byte, u64 address) {
    asm volatile("st.global.u8 [%1], %0;" ::"r"(byte), "l"(address));
}

// One element; or eight on a multiple of 16 bytes, or four of f32.
template <u32 LANES> __device__ __forceinline__ Bits<LANES> load_bits(u64 address, u32 dtype) {
    static_assert(LANES == 1 || LANES == 4 || LANES == 8, "an element, or 16 bytes of some");
    Bits<LANES> bits;
    if constexpr (LANES > 1) {
        load_16_bytes(bits.word, address);
        if (LANES == 8 && dtype == F32) load_16_bytes(bits.word + 4, address + 16);
    } else if (dtype == F32) {
        asm volatile("ld.global.u32 %0, [%1];" : "=r"(bits.word[0]) : "l"(address));
    } else {
        u16 half;
        asm volatile("ld.global.u16 %0, [%1];" : "=h"(half) : "l"(address));
        bits.word[0] = half;
    }
    return bits;
}

template <u32 LANES>
__device__ __forceinline__ void store_bits(const Bits<LANES> &bits, u64 address, u32 dtype) {
    if constexpr (LANES > 1) {
        store_16_bytes(bits.word, address);
        if (LANES == 8 && dtype == F32) store_16_bytes(bits.word + 4, address + 16);
    } else if (dtype == F32) {
        asm volatile("st.global.u32 [%1], %0;" ::"r"(bits.word[0]), "l"(address));
    } else {
        asm volatile("st.global.u16 [%1], %0;" ::"h"((u16)bits.word[0]), "l"(address));
    }
}

// One element at any address.
__device__ __forceinline__ Bits<1> load_bits_anywhere(u64 address, u32 dtype) {
    const u32 size = size_of(dtype);
    if (address % size == 0) return load_bits<1>(address, dtype);
    Bits<1> bits = {};
#pragma unroll 1
    for (u32 i = 0; i < size; i++) bits.word[0] |= load_byte(address + i) << 8 * i;
    return bits;
}

__device__ __forceinline__ void store_bits_anywhere(Bits<1> bits, u64 address, u32 dtype) {
    const u32 size = size_of(dtype);
    if (address % size == 0) return store_bits(bits, address, dtype);
#pragma unroll 1
    for (u32 i = 0; i < size; i++) store_byte(bits.word[0] >> 8 * i & 0xff, address + i);
}
