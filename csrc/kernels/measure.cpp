// Peak rates of the machine, which `fastattn bench` and the benchmarks report next to every speed.
#include "kernels/measure.h"
#include "kernels/dot.h"
#include "kernels/kernel_list.h"

namespace fastattn::FASTATTN_TARGET {
namespace {

template <class Dot>
FA_INLINE float measure(int64_t iterations) {
    const Words x = broadcast_word(0x3f803f80);  // bfloat16 ones, which never need slow rounding
    typename Dot::Sum sum[kMeasureSums];
    for (auto& s : sum) s = Dot::zero_sum();
    for (int64_t i = 0; i < iterations; ++i) {
        // A few steps per iteration, as in a register tile. Otherwise the compiler moves every sum back and forth.
#pragma GCC unroll 4
        for (int step = 0; step < kMeasureSteps; ++step)
#pragma GCC unroll 16
            for (int j = 0; j < kMeasureSums; ++j) sum[j] = Dot::step(sum[j], x, x);
    }
    for (int j = 1; j < kMeasureSums; ++j) sum[0] = Dot::add_sum(sum[0], sum[j]);
    float lanes[kLanes];
    Dot::store_sum(lanes, sum[0]);
    return lanes[0];
}

}  // namespace

float measure_float32(int64_t iterations) {
    return measure<DotFloat32>(iterations);
}
float measure_bfloat16(int64_t iterations) {
    return measure<DotBfloat16>(iterations);
}
float measure_int8(int64_t iterations) {
    return measure<DotInt8>(iterations);
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
