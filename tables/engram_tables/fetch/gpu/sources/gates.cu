// The context-aware gates of the release V4.1 and of the paper's demonstration, and the latter's short convolution.
//
// Arrays are C order with `width` values a branch; `hidden`, `key`, `value` and `out` hold one element type, which is
// widened to float32 before and rounded once after. Keys and values of a token begin `key_step` and `value_step`
// elements after those of the token before, so both may lie in one projection's output. Sums have one order: thread i
// of 256 adds elements i, i + 256, …, then halves of the 256 sums are added. THREADS is 256; ELEMENT is Float32 or Bfloat16.
#include "numbers.cuh"

struct Float32 {
    typedef float Value;
    static __device__ __forceinline__ float get(const Value *from) { return load<float>(from); }
    static __device__ __forceinline__ void put(Value *to, float value) { store(to, value); }
};

struct Bfloat16 {
    typedef u16 Value;
    static __device__ __forceinline__ float get(const Value *from) { return float_of(u32(load<u16>(from)) << 16); }
    static __device__ __forceinline__ void put(Value *to, float value) { store(to, bfloat16_of(bits_of(value))); }
};

// Sums over all threads of N_SUMS values of each; every thread gets them.
template <u32 N_SUMS> __device__ __forceinline__ void sum_block(float (&sums)[N_SUMS], float (&parts)[N_SUMS][THREADS]) {
    for (u32 n = 0; n < N_SUMS; ++n) parts[n][threadIdx.x] = sums[n];
    __syncthreads();
    for (u32 half = THREADS / 2; half > 0; half /= 2) {
        if (threadIdx.x < half)
            for (u32 n = 0; n < N_SUMS; ++n) parts[n][threadIdx.x] += parts[n][threadIdx.x + half];
        __syncthreads();
    }
    for (u32 n = 0; n < N_SUMS; ++n) sums[n] = parts[n][0];
    // The next call writes where others may not have read yet.
    __syncthreads();
}

__device__ __forceinline__ float inverse_root(float sum, u32 width, float eps) {
    return 1.0f / sqrtf(sum / float(width) + eps);
}

// sigmoid of the root of the magnitude with the sign kept; `zero_has_no_sign`: 0 stays 0, as with the sign function.
__device__ __forceinline__ float gate_of(float dot, bool zero_has_no_sign) {
    const float magnitude = float_of(bits_of(dot) & 0x7FFFFFFFu);
    const float root = sqrtf(magnitude < 1e-6f ? 1e-6f : magnitude);
    if (zero_has_no_sign && dot == 0.0f) return 0.5f;
    return sigmoid(bits_of(dot) >> 31 ? -root : root);
}

// One thread works out the gate (in double precision, slow on some devices) and all get it. Between two calls there
// must be a barrier, as in `sum_block`.
__device__ __forceinline__ float shared_gate(float dot, bool zero_has_no_sign, float *gates, u64 at) {
    __shared__ float gate;
    if (threadIdx.x == 0) {
        gate = gate_of(dot, zero_has_no_sign);
        if (gates != nullptr) store(gates + at, gate);
    }
    __syncthreads();
    return gate;
}

__device__ __forceinline__ bool is_dead(const u8 *dead, u64 token, float *gates, u64 at) {
    if (dead == nullptr || load<u8>(dead + token) == 0) return false;
    if (threadIdx.x == 0 && gates != nullptr) store(gates + at, 0.0f);
    return true;
}

struct Shape {
    u64 n_pairs;
    u32 n_branches, width;
    u64 key_step, value_step;
};

// out = hidden + gate * value; a dead token's hidden state goes through as it is.
template <class E>
__device__ __forceinline__ void run_release(const typename E::Value *hidden, const typename E::Value *key,
                                             const typename E::Value *value, const float *query_weight,
                                             const float *key_weight, const u8 *dead, typename E::Value *out,
                                             float *gates, Shape shape, float eps, float scale) {
    __shared__ float parts[3][THREADS];
    for (u64 pair = blockIdx.x; pair < shape.n_pairs; pair += gridDim.x) {
        const u64 token = pair / shape.n_branches, branch = pair % shape.n_branches;
        const u64 start = pair * shape.width, weights = branch * shape.width;
        const typename E::Value *keys = key + token * shape.key_step + weights, *values = value + token * shape.value_step;
        if (is_dead(dead, token, gates, pair)) {
            for (u32 k = threadIdx.x; k < shape.width; k += THREADS) store(out + start + k, load<typename E::Value>(hidden + start + k));
            continue;
        }
        float sums[3] = {0.0f, 0.0f, 0.0f};
        for (u32 k = threadIdx.x; k < shape.width; k += THREADS) {
            const float h = E::get(hidden + start + k), own = E::get(keys + k);
            sums[0] += h * (load<float>(query_weight + weights + k) * load<float>(key_weight + weights + k)) * own;
            sums[1] += h * h;
            sums[2] += own * own;
        }
        sum_block(sums, parts);
        const float dot = sums[0] * inverse_root(sums[1], shape.width, eps) * inverse_root(sums[2], shape.width, eps) * scale;
        const float gate = shared_gate(dot, false, gates, pair);
        for (u32 k = threadIdx.x; k < shape.width; k += THREADS)
            E::put(out + start + k, E::get(hidden + start + k) + gate * E::get(values + k));
    }
}

// out = gate * value, to which the caller adds the convolution; 0 for a dead token.
template <class E>
__device__ __forceinline__ void run_paper(const typename E::Value *hidden, const typename E::Value *key,
                                           const typename E::Value *value, const float *query_weight,
                                           const float *key_weight, const u8 *dead, typename E::Value *out,
                                           float *gates, Shape shape, float eps, float scale) {
    __shared__ float norms[2][THREADS], parts[1][THREADS];
    for (u64 pair = blockIdx.x; pair < shape.n_pairs; pair += gridDim.x) {
        const u64 token = pair / shape.n_branches, branch = pair % shape.n_branches;
        const u64 start = pair * shape.width, weights = branch * shape.width;
        const typename E::Value *keys = key + token * shape.key_step + weights, *values = value + token * shape.value_step;
        if (is_dead(dead, token, gates, pair)) {
            for (u32 k = threadIdx.x; k < shape.width; k += THREADS) E::put(out + start + k, 0.0f);
            continue;
        }
        float squares[2] = {0.0f, 0.0f};
        for (u32 k = threadIdx.x; k < shape.width; k += THREADS) {
            const float h = E::get(hidden + start + k), own = E::get(keys + k);
            squares[0] += h * h;
            squares[1] += own * own;
        }
        sum_block(squares, norms);
        const float of_hidden = inverse_root(squares[0], shape.width, eps), of_key = inverse_root(squares[1], shape.width, eps);
        float dot[1] = {0.0f};
        for (u32 k = threadIdx.x; k < shape.width; k += THREADS) {
            const float query = E::get(hidden + start + k) * of_hidden * load<float>(query_weight + weights + k);
            dot[0] += E::get(keys + k) * of_key * load<float>(key_weight + weights + k) * query;
        }
        sum_block(dot, parts);
        const float gate = shared_gate(dot[0] / scale, true, gates, pair);
        for (u32 k = threadIdx.x; k < shape.width; k += THREADS) E::put(out + start + k, gate * E::get(values + k));
    }
}

// 1 / root mean square of each of `n_pairs` rows of `width` values.
template <class E>
__device__ __forceinline__ void run_norms(const typename E::Value *values, float *inverse, u64 n_pairs, u32 width, float eps) {
    __shared__ float parts[1][THREADS];
    for (u64 pair = blockIdx.x; pair < n_pairs; pair += gridDim.x) {
        float sums[1] = {0.0f};
        for (u32 k = threadIdx.x; k < width; k += THREADS) {
            const float value = E::get(values + pair * width + k);
            sums[0] += value * value;
        }
        sum_block(sums, parts);
        if (threadIdx.x == 0) store(inverse + pair, inverse_root(sums[0], width, eps));
    }
}

// out = value + SiLU(causal depthwise convolution of the normed values) for the tokens after the first `n_history`.
template <class E>
__device__ __forceinline__ void run_convolution(const typename E::Value *values, const float *inverse, const float *norm_weight,
                                         const float *taps, typename E::Value *out, u64 n_history, u64 n_tokens,
                                         u32 n_branches, u32 width, u32 n_taps, u32 dilation) {
    const u64 n_channels = u64(n_branches) * width, n_values = n_tokens * n_channels;
    for (u64 k = u64(blockIdx.x) * THREADS + threadIdx.x; k < n_values; k += u64(gridDim.x) * THREADS) {
        const u64 token = n_history + k / n_channels, channel = k % n_channels, branch = channel / width;
        float sum = 0.0f;
        for (u32 tap = 0; tap < n_taps; ++tap) {
            const u64 back = u64(n_taps - 1 - tap) * dilation;
            if (back > token) continue;
            const u64 earlier = token - back;
            const float normed = E::get(values + earlier * n_channels + channel) * load<float>(inverse + earlier * n_branches + branch);
            sum += load<float>(taps + channel * n_taps + tap) * (normed * load<float>(norm_weight + channel));
        }
        E::put(out + k, E::get(values + token * n_channels + channel) + sum * sigmoid(sum));
    }
}

extern "C" __global__ void gate_release(const ELEMENT::Value *hidden, const ELEMENT::Value *key, const ELEMENT::Value *value,
                                        const float *query_weight, const float *key_weight, const u8 *dead,
                                        ELEMENT::Value *out, float *gates, u64 n_pairs, u32 n_branches, u32 width,
                                        u64 key_step, u64 value_step, float eps, float scale) {
    const Shape shape = {n_pairs, n_branches, width, key_step, value_step};
    run_release<ELEMENT>(hidden, key, value, query_weight, key_weight, dead, out, gates, shape, eps, scale);
}

extern "C" __global__ void gate_paper(const ELEMENT::Value *hidden, const ELEMENT::Value *key, const ELEMENT::Value *value,
                                      const float *query_weight, const float *key_weight, const u8 *dead,
                                      ELEMENT::Value *out, float *gates, u64 n_pairs, u32 n_branches, u32 width,
                                      u64 key_step, u64 value_step, float eps, float scale) {
    const Shape shape = {n_pairs, n_branches, width, key_step, value_step};
    run_paper<ELEMENT>(hidden, key, value, query_weight, key_weight, dead, out, gates, shape, eps, scale);
}

extern "C" __global__ void inverse_norms(const ELEMENT::Value *values, float *inverse, u64 n_pairs, u32 width, float eps) {
    run_norms<ELEMENT>(values, inverse, n_pairs, width, eps);
}

extern "C" __global__ void convolve(const ELEMENT::Value *values, const float *inverse, const float *norm_weight,
                                    const float *taps, ELEMENT::Value *out, u64 n_history, u64 n_tokens, u32 n_branches,
                                    u32 width, u32 n_taps, u32 dilation) {
    run_convolution<ELEMENT>(values, inverse, norm_weight, taps, out, n_history, n_tokens, n_branches, width, n_taps, dilation);
}
