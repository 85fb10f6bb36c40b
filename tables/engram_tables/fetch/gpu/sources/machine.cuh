// Words, memory and the threads that share a row: what every kernel here stands on.
//
// The sources include nothing of CUDA's, so that NVRTC needs no headers. Every access to global memory goes through
// the functions below; where these sources run on a processor instead, ENGRAM_ON_PROCESSOR is defined, and READS and
// WRITES check each access against the arrays that were passed.
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;

#ifndef ENGRAM_ON_PROCESSOR
#define READS(address, n_bytes)
#define WRITES(address, n_bytes)
#endif

// A row belongs to this many neighbouring threads: with 16 bytes each, one load brings 256 bytes of it.
constexpr u32 LANES = 16;

template <u32 N_BYTES> struct WordOf;
template <> struct WordOf<16> { typedef uint4 type; };
template <> struct WordOf<8> { typedef uint2 type; };
template <> struct WordOf<4> { typedef u32 type; };
template <> struct WordOf<2> { typedef u16 type; };
template <> struct WordOf<1> { typedef u8 type; };

template <class T> __device__ __forceinline__ T load(const void *address) {
    READS(address, sizeof(T));
    return *reinterpret_cast<const T *>(address);
}

// For memory that is read once: it should not push out what the caches hold for others.
template <class T> __device__ __forceinline__ T load_once(const void *address) {
    READS(address, sizeof(T));
    return __ldcs(reinterpret_cast<const T *>(address));
}

template <class T> __device__ __forceinline__ void store(void *address, T value) {
    WRITES(address, sizeof(T));
    *reinterpret_cast<T *>(address) = value;
}

// Which rows a worker (LANES threads) takes: its own number, then steps of `step`.
struct Worker {
    u64 first, step;
    u32 lane, in_block, mask;
};

__device__ __forceinline__ Worker this_worker() {
    const u32 in_block = threadIdx.x / LANES, workers_of_block = blockDim.x / LANES;
    Worker worker;
    worker.first = u64(blockIdx.x) * workers_of_block + in_block;
    worker.step = u64(gridDim.x) * workers_of_block;
    worker.lane = threadIdx.x % LANES;
    worker.in_block = in_block;
    worker.mask = 0xFFFFu << (16 * (in_block & 1));
    return worker;
}

// The row that item `item` of `n_items` asks for, or -1 where there is nothing to do: past the end, a negative
// position (left to another source), or a position that the memory does not have, which is counted.
__device__ __forceinline__ i64 wanted_row(const i64 *positions, u64 item, u64 n_items, u64 n_rows, u32 lane, u32 *refused) {
    if (item >= n_items) return -1;
    if (positions == nullptr) return i64(item);
    const i64 position = load<i64>(positions + item);
    if (position < 0 || u64(position) < n_rows) return position < 0 ? -1 : position;
    if (lane == 0 && refused != nullptr) {
        WRITES(refused, sizeof(u32));
        atomicAdd(refused, 1u);
    }
    return -1;
}
