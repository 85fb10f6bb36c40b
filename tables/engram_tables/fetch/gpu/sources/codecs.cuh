// One value of one record, for every codec that decodes: `bits` gives the float32 bits of value `k`.
//
// `Bytes` gives a record's byte by its offset, from wherever the record is. `table_scale` is the one scale of a whole
// table, which only `fp8_e4m3_scalar` uses. FITS_BFLOAT16: each value is a bfloat16 already, so the upper half of its
// bits is the whole of it.
#pragma once
#include "numbers.cuh"

template <class Bytes> __device__ __forceinline__ u32 two_bytes(const Bytes &record, u32 at) {
    return u32(record(at)) | u32(record(at + 1)) << 8;
}

template <class Bytes> __device__ __forceinline__ u32 nibble(const Bytes &record, u32 at, bool upper) {
    const u32 pair = record(at);
    return upper ? pair >> 4 : pair & 15u;
}

struct f32 {
    static constexpr bool FITS_BFLOAT16 = false;
    template <class Bytes> static __device__ __forceinline__ u32 bits(const Bytes &record, u32 k, float) {
        return two_bytes(record, 4 * k) | two_bytes(record, 4 * k + 2) << 16;
    }
};

struct f16 {
    static constexpr bool FITS_BFLOAT16 = false;
    template <class Bytes> static __device__ __forceinline__ u32 bits(const Bytes &record, u32 k, float) {
        return half_bits(two_bytes(record, 2 * k));
    }
};

struct bf16 {
    static constexpr bool FITS_BFLOAT16 = true;
    template <class Bytes> static __device__ __forceinline__ u32 bits(const Bytes &record, u32 k, float) {
        return two_bytes(record, 2 * k) << 16;
    }
};

struct fp8_e4m3_e8m0 {
    static constexpr bool FITS_BFLOAT16 = true;
    template <class Bytes> static __device__ __forceinline__ u32 bits(const Bytes &record, u32 k, float) {
        const u32 code = record(k), scale = record(ROW_WIDTH + k / 32);
        if ((code & 0x7Fu) == 0x7Fu || scale == 255u) return NAN_BITS;
        const u32 product = bits_of(e4m3_value(code) * e8m0_value(scale));
        return u32(bfloat16_of(product)) << 16;
    }
};

struct fp8_e4m3_scalar {
    static constexpr bool FITS_BFLOAT16 = false;
    template <class Bytes> static __device__ __forceinline__ u32 bits(const Bytes &record, u32 k, float table_scale) {
        const u32 code = record(k);
        return (code & 0x7Fu) == 0x7Fu ? NAN_BITS : bits_of(e4m3_value(code) * table_scale);
    }
};

struct int8_row {
    static constexpr bool FITS_BFLOAT16 = false;
    template <class Bytes> static __device__ __forceinline__ u32 bits(const Bytes &record, u32 k, float) {
        return result_bits(float(static_cast<signed char>(record(k))) * float_of(half_bits(two_bytes(record, ROW_WIDTH))));
    }
};

struct int4_g32 {
    static constexpr bool FITS_BFLOAT16 = false;
    template <class Bytes> static __device__ __forceinline__ u32 bits(const Bytes &record, u32 k, float) {
        const u32 scale_at = ROW_WIDTH / 2 + 2 * (k / 32), bias_at = scale_at + ROW_WIDTH / 16;
        const float scale = float_of(two_bytes(record, scale_at) << 16), bias = float_of(two_bytes(record, bias_at) << 16);
        return result_bits(float(nibble(record, k / 2, k & 1u)) * scale + bias);
    }
};

struct q8_0 {
    static constexpr bool FITS_BFLOAT16 = false;
    template <class Bytes> static __device__ __forceinline__ u32 bits(const Bytes &record, u32 k, float) {
        const u32 block = 34 * (k / 32);
        const float scale = float_of(half_bits(two_bytes(record, block)));
        return result_bits(float(static_cast<signed char>(record(block + 2 + k % 32))) * scale);
    }
};

// The two GGUF formats of four bits differ in what a code means.
template <class Bytes> __device__ __forceinline__ u32 block_code(const Bytes &record, u32 k) {
    return nibble(record, 18 * (k / 32) + 2 + k % 16, k & 16u);
}

template <class Bytes> __device__ __forceinline__ float block_scale(const Bytes &record, u32 k) {
    return float_of(half_bits(two_bytes(record, 18 * (k / 32))));
}

struct q4_0 {
    static constexpr bool FITS_BFLOAT16 = false;
    template <class Bytes> static __device__ __forceinline__ u32 bits(const Bytes &record, u32 k, float) {
        return result_bits(float(int(block_code(record, k)) - 8) * block_scale(record, k));
    }
};

__device__ const signed char IQ4_LEVELS[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

struct iq4_nl {
    static constexpr bool FITS_BFLOAT16 = false;
    template <class Bytes> static __device__ __forceinline__ u32 bits(const Bytes &record, u32 k, float) {
        return result_bits(float(IQ4_LEVELS[block_code(record, k)]) * block_scale(record, k));
    }
};
