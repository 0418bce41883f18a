// Peak rates of the machine, which `fastattn bench` and the benchmarks report next to every speed.
#include "kernels/measure.h"
#include "kernels/dot.h"
#include "kernels/kernel_list.h"
#if FASTATTN_HAS_TILES
#include "simd/amx.h"
#endif

namespace fastattn::FASTATTN_TARGET {
namespace {

// A tile of a linear with operands from the L1 cache. The operands differ, the compiler must assume that every step
// changes them, and the result depends on every lane. Otherwise it leaves out sums, and moves the parts of an int8
// product that need no sum out of the loop.
template <class Dot>
FA_INLINE float measure(int64_t iterations) {
    alignas(64) int32_t rows[kTileRows], columns[kTileVecs * kLanes];
    const int32_t ones = 0x3f803f80;  // as bfloat16; numbers near 1 never need slow rounding
    for (int i = 0; i < kTileRows; ++i) rows[i] = ones + 0x10001 * i;
    for (int i = 0; i < kTileVecs * kLanes; ++i) columns[i] = ones + 0x10001 * i;
    typename Dot::Sum sum[kTileRows][kTileVecs];
#pragma GCC unroll 8
    for (int r = 0; r < kTileRows; ++r)
#pragma GCC unroll 8
        for (int j = 0; j < kTileVecs; ++j) sum[r][j] = Dot::zero_sum();
    for (int64_t i = 0; i < iterations; ++i) {
        // A few steps per iteration. Otherwise the compiler moves every sum back and forth.
#pragma GCC unroll 4
        for (int step = 0; step < kMeasureSteps; ++step) {
            asm volatile("" : : "r"(rows), "r"(columns) : "memory");  // emits no instruction
            Words b[kTileVecs];
#pragma GCC unroll 8
            for (int j = 0; j < kTileVecs; ++j) b[j] = load_words(columns + j * kLanes);
#pragma GCC unroll 8
            for (int r = 0; r < kTileRows; ++r) {
                const Words x = broadcast_word(rows[r]);
#pragma GCC unroll 8
                for (int j = 0; j < kTileVecs; ++j) sum[r][j] = Dot::step(sum[r][j], x, b[j]);
            }
        }
    }
    auto total = Dot::zero_sum();
#pragma GCC unroll 8
    for (int r = 0; r < kTileRows; ++r)
#pragma GCC unroll 8
        for (int j = 0; j < kTileVecs; ++j) total = Dot::add_sum(total, sum[r][j]);
    float lanes[kLanes];
    Dot::store_sum(lanes, total);
    return reduce_add(load(lanes));
}

#if FASTATTN_HAS_TILES
// Four products of tiles, with operands from the L1 cache, like a block of a linear.
template <Format kFormat>
FA_INLINE float measure_tiles(int64_t iterations) {
    alignas(64) static constexpr std::byte kZeros[kTileBytes]{};
    alignas(64) float sums[kTileWords * kTileWords];
    const TileRegisters tiles(2 * kTileWords);
    FA_TILE_READY();
    FA_TILE_CLEAR_SUMS();
    for (int64_t i = 0; i < iterations; ++i) {
        FA_TILE_LOAD(4, kZeros, 64);
        FA_TILE_LOAD(5, kZeros, 64);
        FA_TILE_LOAD(6, kZeros, 64);
        FA_TILE_LOAD(7, kZeros, 64);
        FA_TILE_MULTIPLY(kFormat, 0, 4, 6);
        FA_TILE_MULTIPLY(kFormat, 1, 4, 7);
        FA_TILE_MULTIPLY(kFormat, 2, 5, 6);
        FA_TILE_MULTIPLY(kFormat, 3, 5, 7);
    }
    FA_TILE_STORE(0, sums, 64);
    return sums[0];
}
#endif

#if FASTATTN_HAS_INT8_PAIRS
// Tiles of a linear with operands from the L1 cache: as many products as measure<DotInt8>, of two words at a time.
FA_INLINE float measure_pairs(int64_t iterations) {
    static_assert(kMeasureSums == kTileRows && kMeasureSteps % 2 == 0);
    // Different operands, and a result that needs all sums, so the compiler computes each of them.
    alignas(64) int32_t rows[2 * kTileRows], columns[2 * kLanes];
    for (int i = 0; i < 2 * kTileRows; ++i) rows[i] = i;
    for (int i = 0; i < 2 * kLanes; ++i) columns[i] = i;
    auto sums = PairSums<kTileRows>::zero();
    for (int64_t i = 0; i < iterations; ++i)
        for (int step = 0; step < kMeasureSteps; step += 2) {
            asm volatile("" : : "r"(rows), "r"(columns) : "memory");  // as above
            sums.add_products(rows, 2, columns, kLanes * static_cast<int64_t>(sizeof columns[0]));
        }
    Words total = sums.row(0);
#pragma GCC unroll 8
    for (int r = 1; r < kTileRows; ++r) total = add_int(total, sums.row(r));
    return reduce_add(to_float(total));
}
#endif

}  // namespace

float measure_float32(int64_t iterations) {
    return measure<DotFloat32>(iterations);
}
float measure_bfloat16(int64_t iterations) {
#if FASTATTN_HAS_TILES
    return measure_tiles<Format::kBfloat16>(iterations);
#else
    return measure<DotBfloat16>(iterations);
#endif
}
float measure_int8(int64_t iterations) {
#if FASTATTN_HAS_TILES
    return measure_tiles<Format::kInt8>(iterations);
#elif FASTATTN_HAS_INT8_PAIRS
    return measure_pairs(iterations);
#else
    return measure<DotInt8>(iterations);
#endif
}

float measure_read(const float* p, int64_t n) {
    constexpr int kStreams = kTileVecs == 4 ? 8 : 4;  // 8 or more additions in flight, all in registers
    Vec sum[kStreams];
    for (auto& s : sum) s = zero();
    for (int64_t i = 0; i + kStreams * kLanes <= n; i += kStreams * kLanes)
        for (int j = 0; j < kStreams; ++j) sum[j] = add(sum[j], load(p + i + j * kLanes));
    for (int j = 1; j < kStreams; ++j) sum[0] = add(sum[0], sum[j]);
    return reduce_add(sum[0]);
}

}  // namespace fastattn::FASTATTN_TARGET
