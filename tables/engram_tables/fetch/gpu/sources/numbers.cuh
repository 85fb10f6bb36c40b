// Numbers bit for bit: conversions by integer operations, and an exponential from additions and products alone.
//
// Compiled without contraction to fused operations, without flushing of subnormal numbers, with correctly rounded
// divisions and roots, so each operation here is one of IEEE 754 and gives the same bits anywhere.
#pragma once
#include "machine.cuh"

constexpr u32 NAN_BITS = 0x7FC00000u;

__device__ __forceinline__ float float_of(u32 bits) { return __uint_as_float(bits); }
__device__ __forceinline__ u32 bits_of(float value) { return __float_as_uint(value); }
__device__ __forceinline__ bool is_nan(u32 bits) { return (bits & 0x7FFFFFFFu) > 0x7F800000u; }

// The bits of a result of arithmetic: processors differ in the payload of a NaN that they make, so it gets one.
__device__ __forceinline__ u32 result_bits(float value) {
    const u32 bits = bits_of(value);
    return is_nan(bits) ? NAN_BITS : bits;
}

// float32 bits of an IEEE half; NaN keep their payload.
__device__ __forceinline__ u32 half_bits(u32 code) {
    const u32 magnitude = code & 0x7FFFu, word = magnitude << 13;
    const u32 small = bits_of(float_of(word + 0x38800000u) - 6.103515625e-05f);
    const u32 large = word + (magnitude < 0x7C00u ? 0x38000000u : 0x70000000u);
    return (magnitude < 0x400u ? small : large) | (code & 0x8000u) << 16;
}

// float32 bits rounded to bfloat16, to nearest, ties to even; a NaN becomes quiet and keeps sign and upper payload.
__device__ __forceinline__ u16 bfloat16_of(u32 bits) {
    if (is_nan(bits)) return u16(bits >> 16 | 0x40u);
    return u16((bits + 0x7FFFu + (bits >> 16 & 1u)) >> 16);
}

// float32 of an E4M3 "FN" code but for its two NaN: the code's bits, read as a float32, are 2**-120 of the value.
__device__ __forceinline__ float e4m3_value(u32 code) {
    return float_of((code & 0x80u) << 24 | (code & 0x7Fu) << 20) * 1.329227995784916e+36f;
}

// float32 of an E8M0 scale below 255: 2**(code - 127), of which code 0 is subnormal.
__device__ __forceinline__ float e8m0_value(u32 code) { return float_of(code == 0 ? 0x00400000u : code << 23); }

// e**x in double precision for |x| <= 700, within two units in the last place: x = k ln 2 + r, and a Taylor series.
__device__ inline double exponential(double x) {
    const double rounder = 6755399441055744.0;
    const double k = (x * 1.4426950408889634 + rounder) - rounder;
    const double r = (x - k * 0.6931471803691238) - k * 1.9082149292705877e-10;
    double sum = 1.6059043836821613e-10;
    sum = sum * r + 2.08767569878681e-09;
    sum = sum * r + 2.505210838544172e-08;
    sum = sum * r + 2.755731922398589e-07;
    sum = sum * r + 2.7557319223985893e-06;
    sum = sum * r + 2.48015873015873e-05;
    sum = sum * r + 0.0001984126984126984;
    sum = sum * r + 0.001388888888888889;
    sum = sum * r + 0.008333333333333333;
    sum = sum * r + 0.041666666666666664;
    sum = sum * r + 0.16666666666666666;
    sum = sum * r + 0.5;
    sum = sum * r + 1.0;
    sum = sum * r + 1.0;
    return sum * __longlong_as_double((i64(k) + 1023) << 52);
}

__device__ inline float sigmoid(float x) {
    if (x != x) return x;
    double negative = -double(x);
    negative = negative > 700.0 ? 700.0 : negative < -700.0 ? -700.0 : negative;
    return float(1.0 / (1.0 + exponential(negative)));
}
