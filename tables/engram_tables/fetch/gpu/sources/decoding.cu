// The values of records: those that `positions` choose, or all of them in order where it is null.
//
// Fixed when compiled: CODEC, ROW_WIDTH, ROW_BYTES, STRIDE_BYTES (from record to record), LOAD_BYTES (a power of two
// up to 16 that divides the stride and the memory's address), THREADS, ROWS_AT_ONCE, and STAGED: whether records pass
// through shared memory, which they do unless two of them do not fit. Each byte of a staged record crosses the bus
// once, in the widest loads there are, before any of them is decoded.
#include "codecs.cuh"

constexpr u32 N_WORDS = (ROW_BYTES + LOAD_BYTES - 1) / LOAD_BYTES;
constexpr u32 STAGE_BYTES = (ROW_BYTES + 15) / 16 * 16;
constexpr u32 WORKERS = THREADS / LANES;
typedef WordOf<LOAD_BYTES>::type Word;

struct InMemory {
    const u8 *record;
    __device__ __forceinline__ u8 operator()(u32 at) const { return load<u8>(record + at); }
};

struct InStage {
    const u8 *record;
    __device__ __forceinline__ u8 operator()(u32 at) const { return record[at]; }
};

struct Float32 {
    typedef float Value;
    static constexpr u32 N_VALUES = ROW_WIDTH % 4 == 0 ? 4 : 1;
    template <class Bytes> static __device__ __forceinline__ void write(const Bytes &record, u32 k, float scale, Value *out) {
        if constexpr (N_VALUES == 4) {
            uint4 word;
            word.x = CODEC::bits(record, k, scale);
            word.y = CODEC::bits(record, k + 1, scale);
            word.z = CODEC::bits(record, k + 2, scale);
            word.w = CODEC::bits(record, k + 3, scale);
            store(out + k, word);
        } else {
            store(reinterpret_cast<u32 *>(out + k), CODEC::bits(record, k, scale));
        }
    }
};

struct Bfloat16 {
    typedef u16 Value;
    static constexpr u32 N_VALUES = ROW_WIDTH % 8 == 0 ? 8 : 1;
    template <class Bytes> static __device__ __forceinline__ u16 code(const Bytes &record, u32 k, float scale) {
        const u32 bits = CODEC::bits(record, k, scale);
        return CODEC::FITS_BFLOAT16 ? u16(bits >> 16) : bfloat16_of(bits);
    }
    template <class Bytes> static __device__ __forceinline__ u32 pair(const Bytes &record, u32 k, float scale) {
        return u32(code(record, k, scale)) | u32(code(record, k + 1, scale)) << 16;
    }
    template <class Bytes> static __device__ __forceinline__ void write(const Bytes &record, u32 k, float scale, Value *out) {
        if constexpr (N_VALUES == 8) {
            uint4 word;
            word.x = pair(record, k, scale);
            word.y = pair(record, k + 2, scale);
            word.z = pair(record, k + 4, scale);
            word.w = pair(record, k + 6, scale);
            store(out + k, word);
        } else {
            store(out + k, code(record, k, scale));
        }
    }
};

template <class Out, class Bytes>
__device__ __forceinline__ void write_row(const Bytes &record, u32 lane, float scale, typename Out::Value *out) {
    for (u32 k = lane * Out::N_VALUES; k < ROW_WIDTH; k += LANES * Out::N_VALUES) Out::write(record, k, scale, out);
}

#if STAGED

template <class Out>
__device__ __forceinline__ void decode_rows(const u8 *memory, u64 n_rows, const i64 *positions, u64 n_items,
                                            typename Out::Value *out, float scale, u32 *refused) {
    __shared__ uint4 stage[WORKERS][ROWS_AT_ONCE][STAGE_BYTES / 16];
    const Worker worker = this_worker();
    for (u64 first = worker.first; first < n_items; first += worker.step * ROWS_AT_ONCE) {
        i64 rows[ROWS_AT_ONCE];
#pragma unroll
        for (u32 k = 0; k < ROWS_AT_ONCE; ++k)
            rows[k] = wanted_row(positions, first + k * worker.step, n_items, n_rows, worker.lane, refused);
        for (u32 at = worker.lane; at < N_WORDS; at += LANES) {
            Word words[ROWS_AT_ONCE];
#pragma unroll
            for (u32 k = 0; k < ROWS_AT_ONCE; ++k)
                if (rows[k] >= 0) words[k] = load_once<Word>(memory + u64(rows[k]) * STRIDE_BYTES + at * LOAD_BYTES);
#pragma unroll
            for (u32 k = 0; k < ROWS_AT_ONCE; ++k)
                if (rows[k] >= 0) reinterpret_cast<Word *>(stage[worker.in_block][k])[at] = words[k];
        }
        u32 present = 0;
#pragma unroll
        for (u32 k = 0; k < ROWS_AT_ONCE; ++k) present |= u32(rows[k] >= 0) << k;
        __syncwarp(worker.mask);
#pragma unroll 1
        for (u32 k = 0; k < ROWS_AT_ONCE; ++k) {
            const InStage record = {reinterpret_cast<const u8 *>(stage[worker.in_block][k])};
            if (present >> k & 1u) write_row<Out>(record, worker.lane, scale, out + (first + k * worker.step) * ROW_WIDTH);
        }
        // The next rows go where these still stand for lanes that are behind.
        __syncwarp(worker.mask);
    }
}

#else

template <class Out>
__device__ __forceinline__ void decode_rows(const u8 *memory, u64 n_rows, const i64 *positions, u64 n_items,
                                            typename Out::Value *out, float scale, u32 *refused) {
    const Worker worker = this_worker();
    for (u64 item = worker.first; item < n_items; item += worker.step) {
        const i64 row = wanted_row(positions, item, n_items, n_rows, worker.lane, refused);
        if (row < 0) continue;
        const InMemory record = {memory + u64(row) * STRIDE_BYTES};
        write_row<Out>(record, worker.lane, scale, out + item * ROW_WIDTH);
    }
}

#endif

extern "C" __global__ void decode_float32(const u8 *memory, u64 n_rows, const i64 *positions, u64 n_items, float *out,
                                          float scale, u32 *refused) {
    decode_rows<Float32>(memory, n_rows, positions, n_items, out, scale, refused);
}

extern "C" __global__ void decode_bfloat16(const u8 *memory, u64 n_rows, const i64 *positions, u64 n_items, u16 *out,
                                           float scale, u32 *refused) {
    decode_rows<Bfloat16>(memory, n_rows, positions, n_items, out, scale, refused);
}
