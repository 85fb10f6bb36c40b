// The part of CUDA that the kernels' sources use, on one thread of a processor.
//
// Every CUDA thread is a fiber that runs until a barrier; which goes first is chosen by a seed, so a missing barrier
// shows. Blocks run one after the other. Reads and writes of global memory are checked against the arrays passed in:
// bounds, alignment, and no writing where only reading is allowed. What is wrong is told, once, and the launch ends.
#pragma once
#include <setjmp.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>

#define ENGRAM_ON_PROCESSOR 1
#define __global__
#define __device__
#define __forceinline__ inline __attribute__((always_inline))
#define __shared__ static

// All of this and the kernels have internal linkage: libraries of several programs are loaded side by side, and shared
// memory of one name but of another length must not become one.
namespace {

struct alignas(16) uint4 { unsigned x, y, z, w; };
struct alignas(8) uint2 { unsigned x, y; };
struct Index { unsigned x; };

static Index threadIdx, blockIdx, blockDim, gridDim;

struct Range { uint64_t start, stop; uint64_t writable; };

namespace machine {
constexpr unsigned MOST_THREADS = 1024;
constexpr size_t STACK_BYTES = 64 * 1024;
enum State { READY, AT_WARP, AT_BLOCK, DONE };
struct Fiber { ucontext_t context; State state; unsigned mask; };
static Fiber fibers[MOST_THREADS];
static ucontext_t scheduler;
static char *stacks;
static unsigned current;
static void (*body)();
static const Range *ranges;
static uint64_t n_ranges, accesses, barriers;
static uint64_t random_state;
static char message[256];

// A failed thread goes back and never returns; the launch stops when the scheduler sees the message.
inline void fail(const char *what, uint64_t first, uint64_t second) {
    if (!message[0])
        snprintf(message, sizeof message, "%s (%llx, %llu) in block %u, thread %u", what, (unsigned long long)first,
                 (unsigned long long)second, blockIdx.x, current);
    fibers[current].state = DONE;
    swapcontext(&fibers[current].context, &scheduler);
}

inline void check(const void *address, uint64_t n_bytes, bool writes) {
    const uint64_t at = (uint64_t)address;
    ++accesses;
    if (at % n_bytes) fail("access not aligned", at, n_bytes);
    for (uint64_t k = 0; k < n_ranges; ++k)
        if (at >= ranges[k].start && at + n_bytes <= ranges[k].stop) {
            if (writes && !ranges[k].writable) fail("write to what is only read", at, n_bytes);
            return;
        }
    fail(writes ? "write out of bounds" : "read out of bounds", at, n_bytes);
}

inline void wait(State state, unsigned mask) {
    ++barriers;
    fibers[current].state = state;
    fibers[current].mask = mask;
    swapcontext(&fibers[current].context, &scheduler);
    threadIdx.x = current;
}

static void run_body() {
    body();
    fibers[current].state = DONE;
    swapcontext(&fibers[current].context, &scheduler);
}

inline unsigned random_below(unsigned limit) {
    random_state = random_state * 6364136223846793005ull + 1442695040888963407ull;
    return (unsigned)((random_state >> 33) % limit);
}

// A warp's barrier opens when all lanes of a mask have come with that same mask.
inline bool open_warps() {
    bool opened = false;
    for (unsigned warp = 0; warp < blockDim.x; warp += 32)
        for (unsigned lane = 0; lane < 32 && warp + lane < blockDim.x; ++lane) {
            if (fibers[warp + lane].state != AT_WARP) continue;
            const unsigned mask = fibers[warp + lane].mask;
            bool all = mask >> lane & 1u;
            for (unsigned other = 0; other < 32; ++other)
                if (mask >> other & 1u) {
                    const Fiber &fiber = fibers[warp + other];
                    all = all && warp + other < blockDim.x && fiber.state == AT_WARP && fiber.mask == mask;
                }
            if (!all) continue;
            for (unsigned other = 0; other < 32; ++other)
                if (mask >> other & 1u) fibers[warp + other].state = READY;
            opened = true;
        }
    return opened;
}

inline bool open_block() {
    for (unsigned k = 0; k < blockDim.x; ++k)
        if (fibers[k].state != AT_BLOCK) return false;
    for (unsigned k = 0; k < blockDim.x; ++k) fibers[k].state = READY;
    return true;
}

inline void run_block() {
    for (unsigned k = 0; k < blockDim.x; ++k) {
        getcontext(&fibers[k].context);
        fibers[k].context.uc_stack.ss_sp = stacks + k * STACK_BYTES;
        fibers[k].context.uc_stack.ss_size = STACK_BYTES;
        fibers[k].context.uc_link = nullptr;
        fibers[k].state = READY;
        makecontext(&fibers[k].context, run_body, 0);
    }
    static unsigned order[MOST_THREADS];
    for (;;) {
        unsigned n_ready = 0, n_done = 0;
        for (unsigned k = 0; k < blockDim.x; ++k) {
            if (fibers[k].state == READY) order[n_ready++] = k;
            n_done += fibers[k].state == DONE;
        }
        if (n_done == blockDim.x) return;
        if (n_ready == 0) {
            if (open_warps() || open_block()) continue;
            if (!message[0]) snprintf(message, sizeof message, "barrier that not all threads reach in block %u", blockIdx.x);
            return;
        }
        for (unsigned k = n_ready; k > 1; --k) {
            const unsigned other = random_below(k), last = order[k - 1];
            order[k - 1] = order[other];
            order[other] = last;
        }
        for (unsigned k = 0; k < n_ready; ++k) {
            current = threadIdx.x = order[k];
            swapcontext(&scheduler, &fibers[current].context);
            if (message[0]) return;
        }
    }
}

struct Launch { unsigned blocks, threads; uint64_t seed; const Range *ranges; uint64_t n_ranges; };

inline const char *run(const Launch &launch, void (*of_thread)()) {
    if (stacks == nullptr)
        stacks = (char *)mmap(nullptr, MOST_THREADS * STACK_BYTES, PROT_READ | PROT_WRITE,
                              MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    gridDim.x = launch.blocks;
    blockDim.x = launch.threads;
    ranges = launch.ranges;
    n_ranges = launch.n_ranges;
    random_state = launch.seed;
    accesses = barriers = 0;
    message[0] = 0;
    body = of_thread;
    for (blockIdx.x = 0; blockIdx.x < launch.blocks && !message[0]; ++blockIdx.x) run_block();
    return message[0] ? message : nullptr;
}

// A kernel's arguments as CUDA takes them: an array of pointers to values.
static void **arguments;
template <class T> inline T argument(unsigned k) { return *(T *)arguments[k]; }
template <unsigned... K> struct Places {};
template <unsigned N, unsigned... K> struct PlacesUpTo : PlacesUpTo<N - 1, N - 1, K...> {};
template <unsigned... K> struct PlacesUpTo<0, K...> { typedef Places<K...> type; };
template <class... A, unsigned... K> inline void call(void (*kernel)(A...), Places<K...>) { kernel(argument<A>(K)...); }
template <class... A> inline void call(void (*kernel)(A...)) { call(kernel, typename PlacesUpTo<sizeof...(A)>::type()); }
} // namespace machine

#define READS(address, n_bytes) machine::check(address, n_bytes, false)
#define WRITES(address, n_bytes) machine::check(address, n_bytes, true)

#define LAUNCHABLE(KERNEL)                                                                                              \
    static void thread_of_##KERNEL() { machine::call(KERNEL); }                                                        \
    extern "C" const char *launch_##KERNEL(const machine::Launch *launch, void **arguments) {                         \
        machine::arguments = arguments;                                                                                \
        return machine::run(*launch, thread_of_##KERNEL);                                                              \
    }

static inline void __syncthreads() { machine::wait(machine::AT_BLOCK, 0); }
static inline void __syncwarp(unsigned mask) { machine::wait(machine::AT_WARP, mask); }
static inline float __uint_as_float(unsigned bits) { float value; memcpy(&value, &bits, 4); return value; }
static inline unsigned __float_as_uint(float value) { unsigned bits; memcpy(&bits, &value, 4); return bits; }
static inline double __longlong_as_double(long long bits) { double value; memcpy(&value, &bits, 8); return value; }
static inline float sqrtf(float value) { return __builtin_sqrtf(value); }
template <class T> static inline T __ldcs(const T *address) { return *address; }
static inline unsigned atomicAdd(unsigned *address, unsigned value) { const unsigned before = *address; *address += value; return before; }

} // namespace
