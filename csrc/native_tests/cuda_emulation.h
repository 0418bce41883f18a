// Runs CUDA kernels on the CPU: the names that csrc/cuda/kernels/device.h promises, for g++. Threads of a block are
// fibers, which switch at barriers and wherever lanes of a warp communicate. The emulation exists to find mistakes, so
// it is strict where hardware is silent:
// - threads run in the order given by `order`: a result that depends on it, because a barrier is missing, changes;
// - shared memory is NaN before a block starts, and asynchronous copies arrive only when a thread waits for them;
// - the run fails if lanes meet at different operations, if lanes meet with lanes that have exited, if a wait never
//   ends, or if a 16-byte address is not aligned.
// It does not detect races between two barriers that every order survives, or a missing warp barrier next to a shuffle
// or an mma, where all lanes meet here. It does not reproduce the rounding inside a tensor core (here: sixteen products
// are added exactly, then rounded once with the sum).
//
// csrc/cuda/kernels/device.h includes this file through the macro FASTATTN_CUDA_EMULATION.
#pragma once
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "core/dtype.h"
#include "native_tests/emulated_stream.h"

namespace fastattn::cuda::emulation {

enum class Order { kForward, kBackward, kShuffled };
inline Order order = Order::kForward;

// The running thread.
struct Current {
    int thread, block_x, block_y;
    unsigned char* shared;
};
inline Current current;

// What a lane shares with its warp.
struct Slot {
    uint32_t words[8];
    const void* address;
};

[[noreturn]] void fail(const char* what);
void block_barrier();
// Publishes `mine` and returns the slots of all 32 lanes, valid until the lane's next exchange.
const Slot* exchange(const char* what, const Slot& mine);
void copy_later(void* to, const void* from);
void commit_copies();
void wait_copies(int groups);
void run(const char* name, Grid grid, int threads, int64_t shared_bytes, void (*body)(const void*), const void* data);

uint16_t round_bf16(float x);
uint16_t round_f16(float x);

template <class P>
P* aligned(P* p) {
    if (reinterpret_cast<uintptr_t>(p) % 16 != 0) fail("an address of 16 bytes is not aligned");
    return p;
}

}  // namespace fastattn::cuda::emulation

namespace fastattn::cuda {

struct alignas(16) Words16 {
    uint32_t x, y, z, w;
};

inline int thread_id() {
    return emulation::current.thread;
}
inline int block_x() {
    return emulation::current.block_x;
}
inline int block_y() {
    return emulation::current.block_y;
}
inline unsigned char* shared_memory() {
    return emulation::current.shared;
}
inline void sync_threads() {
    emulation::block_barrier();
}
inline void sync_warp() {
    emulation::exchange("sync_warp", {});
}

template <class T>
T shuffle(T x, int lane) {
    static_assert(sizeof(T) <= 8);
    emulation::Slot mine{};
    std::memcpy(mine.words, &x, sizeof x);
    std::memcpy(&x, emulation::exchange("shuffle", mine)[lane & (kWarp - 1)].words, sizeof x);
    return x;
}
template <class T>
T shuffle_xor(T x, int mask) {
    return shuffle(x, (thread_id() % kWarp) ^ mask);
}
inline uint32_t ballot(bool condition) {
    const emulation::Slot* all = emulation::exchange("ballot", {.words = {condition}, .address = nullptr});
    uint32_t bits = 0;
    for (int i = 0; i < kWarp; ++i) bits |= all[i].words[0] << i;
    return bits;
}
inline int count_bits(uint32_t x) {
    return __builtin_popcount(x);
}
inline int lowest_bit(uint32_t x) {
    return __builtin_ctz(x);
}
template <class T>
void add_shared(T* p, T x) {
    *p += x;
}

inline Words16 load_16(const void* p) {
    Words16 v;
    std::memcpy(&v, emulation::aligned(p), sizeof v);
    return v;
}
inline void store_16(void* p, Words16 v) {
    std::memcpy(emulation::aligned(p), &v, sizeof v);
}
inline void copy_async_16(void* to, const void* from) {
    emulation::copy_later(emulation::aligned(to), emulation::aligned(from));
}
inline void copy_async_commit() {
    emulation::commit_copies();
}
template <int kGroups>
void copy_async_wait() {
    emulation::wait_copies(kGroups);
}

inline uint32_t word_of(float x) {
    return std::bit_cast<uint32_t>(x);
}
inline float float_from_word(uint32_t x) {
    return std::bit_cast<float>(x);
}
inline float float_of(Bf16 x) {
    return float_from_bf16(x.bits);
}
inline float float_of(F16 x) {
    return float_from_f16(x.bits);
}
template <class T>
uint32_t round_pair(float low, float high) {
    if constexpr (std::is_same_v<T, Bf16>)
        return emulation::round_bf16(low) | uint32_t{emulation::round_bf16(high)} << 16;
    else
        return emulation::round_f16(low) | uint32_t{emulation::round_f16(high)} << 16;
}

// Element j of row `row` of the matrix whose row addresses are in lanes 8 matrix to 8 matrix + 7.
inline uint32_t matrix_element(const emulation::Slot* all, int matrix, int row, int j) {
    uint16_t element;
    std::memcpy(&element, static_cast<const unsigned char*>(all[8 * matrix + row].address) + 2 * j, sizeof element);
    return element;
}
inline void load_matrices(uint32_t (&r)[4], const void* row) {
    const emulation::Slot* all =
        emulation::exchange("load_matrices", {.words = {}, .address = emulation::aligned(row)});
    const int lane = thread_id() % kWarp, j = 2 * (lane % 4);
    for (int i = 0; i < 4; ++i)
        r[i] = matrix_element(all, i, lane / 4, j) | matrix_element(all, i, lane / 4, j + 1) << 16;
}
inline void load_matrices_transposed(uint32_t (&r)[4], const void* row) {
    const emulation::Slot* all =
        emulation::exchange("load_transposed", {.words = {}, .address = emulation::aligned(row)});
    const int lane = thread_id() % kWarp, j = 2 * (lane % 4);
    for (int i = 0; i < 4; ++i)
        r[i] = matrix_element(all, i, j, lane / 4) | matrix_element(all, i, j + 1, lane / 4) << 16;
}

// Fragments as in PTX, with g = lane / 4 and t = lane % 4. a: columns 2 t and 2 t + 1 of row g, then of row g + 8, then
// the same 8 columns later. b: rows 2 t and 2 t + 1 of column g, then the same 8 rows later. c: columns 2 t and 2 t + 1
// of row g, then of row g + 8.
template <class T>
void mma_16x8x16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    const emulation::Slot* all =
        emulation::exchange("mma", {.words = {a[0], a[1], a[2], a[3], b0, b1}, .address = nullptr});
    const auto half = [](uint32_t word, int which) {
        return static_cast<double>(float_of(T{static_cast<uint16_t>(word >> 16 * which)}));
    };
    const int lane = thread_id() % kWarp;
    for (int i = 0; i < 4; ++i) {
        const int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
        double sum = c[i];
        for (int k = 0; k < 16; ++k) {
            const int t = k % 8 / 2, far = k / 8;
            sum += half(all[row % 8 * 4 + t].words[row / 8 + 2 * far], k % 2) *
                   half(all[column * 4 + t].words[4 + far], k % 2);
        }
        c[i] = static_cast<float>(sum);
    }
}

inline float exp2_fast(float x) {
    return std::exp2(x);
}
inline float square_root(float x) {
    return std::sqrt(x);
}

template <class Args>
void launch(const char* name, void (*kernel)(Args), Grid grid, int threads, int64_t shared_bytes, const Args& args,
            Stream stream) {
    struct Call {
        void (*kernel)(Args);
        Args args;
    };
    submit(stream, [=, call = Call{kernel, args}] {
        emulation::run(
            name, grid, threads, shared_bytes,
            [](const void* data) {
                const auto* c = static_cast<const Call*>(data);
                c->kernel(c->args);
            },
            &call);
    });
}

}  // namespace fastattn::cuda
