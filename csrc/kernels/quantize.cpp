// Rows of floats in the words that the linears of bfloat16 and int8 take.
#include "kernels/kernel_list.h"
#include "simd/vec.h"

namespace fastattn::FASTATTN_TARGET {
namespace {

FA_INLINE int lanes_left(int n, int i) {
    return n - i < kLanes ? n - i : kLanes;
}

// Highest magnitude of a row; NaN or infinity if it holds any.
FA_INLINE float highest_magnitude(const float* x, int n) {
    Vec highest = zero(), not_finite = zero();
    int i = 0;
    for (; i + kLanes <= n; i += kLanes) {
        const Vec magnitude = abs(load(x + i));
        highest = max(magnitude, highest);
        not_finite = add(not_finite, sub(magnitude, magnitude));  // inf - inf is NaN, and NaN stays
    }
    if (i < n) {
        const Vec magnitude = abs(load_partial(x + i, n - i));
        highest = max(magnitude, highest);
        not_finite = add(not_finite, sub(magnitude, magnitude));
    }
    return reduce_max(highest) + reduce_add(not_finite);
}

}  // namespace

void quantize_bfloat16(const QuantizeArgs& args) {
    for (int r = 0; r < args.rows; ++r) {
        const float* x = args.x + r * args.x_stride;
        auto* out = reinterpret_cast<uint16_t*>(static_cast<int32_t*>(args.out) + r * args.out_stride);
        for (int i = 0; i < 2 * args.words; i += kLanes)
            store_bf16(out + i, i < args.n ? load_partial(x + i, lanes_left(args.n, i)) : zero());
    }
}

void quantize_int8(const QuantizeArgs& args) {
    for (int r = 0; r < args.rows; ++r) {
        const float* x = args.x + r * args.x_stride;
        auto* out = reinterpret_cast<int8_t*>(static_cast<int32_t*>(args.out) + r * args.out_stride);
        const float highest = highest_magnitude(x, args.n);
        const bool finite = highest - highest == 0.0f;
        // A row of denormals would give an infinite inverse: such a row is 0.
        const float inverse = finite && highest > 0x1p-120f ? 127.0f / highest : 0.0f;
        args.scales[r] = finite ? highest / 127.0f : __builtin_nanf("");
        const Vec scale = broadcast(inverse);
        const Words offset = broadcast_word(args.offset);
        for (int i = 0; i < 4 * args.words; i += kLanes) {
            Words q = zero_words();
            if (i < args.n && inverse > 0.0f) q = round_to_int(mul(load_partial(x + i, lanes_left(args.n, i)), scale));
            store_int8(out + i, add_int(q, offset));
        }
    }
}

}  // namespace fastattn::FASTATTN_TARGET
