// Whole records from memory that the device reads, and into it: `gather` and `scatter`.
//
// Fixed when compiled: ROW_BYTES, STRIDE_BYTES (a multiple of 16, of the memory and of the records alike) and
// ROWS_AT_ONCE, the rows whose loads a worker has under way together: over a bus it is these loads that hide its
// latency. Bytes of a record past the last 16 that hold row bytes are neither read nor written.
#include "machine.cuh"

constexpr u32 N_VECTORS = (ROW_BYTES + 15) / 16;

extern "C" __global__ void gather(const u8 *memory, u64 n_rows, const i64 *positions, u64 n_items, u8 *out, u32 *refused) {
    const Worker worker = this_worker();
    for (u64 first = worker.first; first < n_items; first += worker.step * ROWS_AT_ONCE) {
        i64 rows[ROWS_AT_ONCE];
#pragma unroll
        for (u32 k = 0; k < ROWS_AT_ONCE; ++k)
            rows[k] = wanted_row(positions, first + k * worker.step, n_items, n_rows, worker.lane, refused);
        for (u32 vector = worker.lane; vector < N_VECTORS; vector += LANES) {
            uint4 words[ROWS_AT_ONCE];
#pragma unroll
            for (u32 k = 0; k < ROWS_AT_ONCE; ++k)
                if (rows[k] >= 0) words[k] = load_once<uint4>(memory + u64(rows[k]) * STRIDE_BYTES + 16 * vector);
#pragma unroll
            for (u32 k = 0; k < ROWS_AT_ONCE; ++k)
                if (rows[k] >= 0) store(out + (first + k * worker.step) * STRIDE_BYTES + 16 * vector, words[k]);
        }
    }
}

extern "C" __global__ void scatter(const u8 *records, const i64 *positions, u64 n_items, u8 *memory, u64 n_rows, u32 *refused) {
    const Worker worker = this_worker();
    for (u64 item = worker.first; item < n_items; item += worker.step) {
        const i64 row = wanted_row(positions, item, n_items, n_rows, worker.lane, refused);
        if (row < 0) continue;
        for (u32 vector = worker.lane; vector < N_VECTORS; vector += LANES)
            store(memory + u64(row) * STRIDE_BYTES + 16 * vector, load<uint4>(records + item * STRIDE_BYTES + 16 * vector));
    }
}
