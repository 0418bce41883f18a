// Converts rows of floats to the words that the linears of bfloat16 and int8 take.
#include "kernels/kernel_list.h"
#include "kernels/math.h"
#include "simd/vec.h"

namespace fastattn::FASTATTN_TARGET {
namespace {

FA_INLINE int lanes_left(int n, int i) {
    return n - i < kLanes ? n - i : kLanes;
}

// Highest magnitude of a row, or NaN if it has NaN or infinity.
FA_INLINE float highest_magnitude(const float* x, int n) {
    constexpr int kStreams = 4;
    Words highest[kStreams];
    for (auto& h : highest) h = zero_words();
    int i = 0;
    for (; i + kStreams * kLanes <= n; i += kStreams * kLanes)
#pragma GCC unroll 4
        for (int s = 0; s < kStreams; ++s)
            highest[s] = max_unsigned(magnitude_bits(load(x + i + s * kLanes)), highest[s]);
    for (; i < n; i += kLanes)
        highest[0] = max_unsigned(magnitude_bits(load_partial(x + i, lanes_left(n, i))), highest[0]);
    for (int s = 1; s < kStreams; ++s) highest[0] = max_unsigned(highest[s], highest[0]);
    const Vec all = as_floats(highest[0]);
    const float magnitude = reduce_max(all);
    return any(is_nan(all)) || !(magnitude < kInf) ? __builtin_nanf("") : magnitude;
}

}  // namespace

void quantize_bfloat16(const QuantizeArgs& args) {
    for (int r = 0; r < args.rows; ++r) {
        const float* x = args.x + r * args.x_stride;
        auto* out = reinterpret_cast<uint16_t*>(static_cast<int32_t*>(args.out) + r * args.out_stride);
        int i = 0;
        for (; i + kLanes <= args.n; i += kLanes) store_bf16(out + i, load(x + i));
        for (; i < 2 * args.words; i += kLanes)
            store_bf16(out + i, i < args.n ? load_partial(x + i, args.n - i) : zero());
    }
}

void quantize_int8(const QuantizeArgs& args) {
    const Words offset = broadcast_word(args.offset);
    for (int r = 0; r < args.rows; ++r) {
        const float* x = args.x + r * args.x_stride;
        auto* out = reinterpret_cast<int8_t*>(static_cast<int32_t*>(args.out) + r * args.out_stride);
        const float highest = highest_magnitude(x, args.n);
        args.scales[r] = highest / 127.0f;
        // A row of denormals would give an infinite inverse, so it becomes 0, like a row that is not finite.
        const bool usual = highest > 0x1p-120f;
        const Vec inverse = broadcast(127.0f / highest);
        int i = 0;
        if (usual)
            for (; i + kLanes <= args.n; i += kLanes) {
                __builtin_prefetch(x + args.x_stride + i);  // the next row; finding its maximum reads all of it
                store_int8(out + i, add_int(round_to_int(mul(load(x + i), inverse)), offset));
            }
        for (; i < 4 * args.words; i += kLanes) {
            Words q = zero_words();
            if (usual && i < args.n) q = round_to_int(mul(load_partial(x + i, args.n - i), inverse));
            store_int8(out + i, add_int(q, offset));
        }
    }
}

}  // namespace fastattn::FASTATTN_TARGET
