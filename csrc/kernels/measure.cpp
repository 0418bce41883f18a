// What the machine can do at best, for `fastattn bench` and the benchmarks: the yardstick next to every speed.
#include "kernels/kernel_list.h"
#include "simd/vec.h"

namespace fastattn::FASTATTN_TARGET {
namespace {

constexpr int kAccumulators = kTileVecs == 4 ? 16 : 6;  // enough to hide the latency, few enough for the registers

}  // namespace

int32_t measure_fma_flops() {
    return kAccumulators * kLanes * 2;
}

float measure_fma(int64_t iterations) {
    Vec x = broadcast(1.0f), sum[kAccumulators];
    for (auto& s : sum) s = zero();
    for (int64_t i = 0; i < iterations; ++i) {
#pragma GCC unroll 16
        for (int j = 0; j < kAccumulators; ++j) sum[j] = fma(x, x, sum[j]);
    }
    for (int j = 1; j < kAccumulators; ++j) sum[0] = add(sum[0], sum[j]);
    return reduce_add(sum[0]);
}

float measure_read(const float* p, int64_t n) {
    constexpr int kStreams = kTileVecs == 4 ? 8 : 4;  // as above: at least 8 additions on their way, and no spills
    Vec sum[kStreams];
    for (auto& s : sum) s = zero();
    for (int64_t i = 0; i + kStreams * kLanes <= n; i += kStreams * kLanes)
        for (int j = 0; j < kStreams; ++j) sum[j] = add(sum[j], load(p + i + j * kLanes));
    for (int j = 1; j < kStreams; ++j) sum[0] = add(sum[0], sum[j]);
    return reduce_add(sum[0]);
}

}  // namespace fastattn::FASTATTN_TARGET
