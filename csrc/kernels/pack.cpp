// Packs columns of weights into the words of a panel. src/fastattn/graph/quantize.py has the same formulas in numpy.
#include <cstddef>

#include "kernels/kernel_list.h"
#include "simd/vec.h"

namespace fastattn::FASTATTN_TARGET {
namespace {

constexpr int kGroupWords = traits_of(Format::kInt4).group_words;

// The columns' values at position p of k; zero after the last column and after k.
FA_INLINE Vec columns_at(const PackArgs& args, int p) {
    if (p >= args.k) return zero();
    const float* x = args.x + p * args.x_stride;
    return args.n == kLanes ? load(x) : load_partial(x, args.n);
}

FA_INLINE void store_columns(const PackArgs& args, void* to, Words words) {
    if (args.n == kLanes) return store_words(to, words);
    int32_t lanes[kLanes];
    store_words(lanes, words);
    for (int i = 0; i < args.n; ++i) static_cast<int32_t*>(to)[i] = lanes[i];
}

FA_INLINE void* word_of(const PackArgs& args, int word) {
    const int64_t strip = args.lane / kStripColumns;
    return static_cast<int32_t*>(args.panel) + (strip * args.words + word) * kStripColumns + args.lane % kStripColumns;
}

// b[0] + 2^8 b[1] + 2^16 b[2] + 2^24 b[3], for bytes from 0 to 255.
FA_INLINE Words join_bytes(const Words (&b)[4]) {
    const Words shift = broadcast_word(256);
    return add_int(b[0], mul_int(shift, add_int(b[1], mul_int(shift, add_int(b[2], mul_int(shift, b[3]))))));
}

// Multiplying by `inverse` brings the columns into [-most, most]; multiplying by `scale` undoes it.
struct Scale {
    Mask finite;
    Vec scale, inverse;
};

FA_INLINE Scale scale_of(const PackArgs& args, float most) {
    Vec highest = zero(), not_finite = zero();
    for (int p = 0; p < args.k; ++p) {
        const Vec magnitude = abs(columns_at(args, p));
        highest = max(magnitude, highest);
        not_finite = add(not_finite, sub(magnitude, magnitude));  // inf - inf is NaN, and NaN stays NaN
    }
    const Mask finite = equal(not_finite, zero());
    highest = select(finite, highest, zero());
    const Vec scale = div(highest, broadcast(most));
    float scales[kLanes];
    store(scales, select(finite, scale, broadcast(__builtin_nanf(""))));
    for (int i = 0; i < args.n; ++i) args.scales[i] = scales[i];
    // A column of denormals would give an infinite inverse, so it becomes 0.
    const Mask large = less(broadcast(0x1p-120f), highest);
    return {finite, scale, select(large, div(broadcast(most), highest), zero())};
}

FA_INLINE void store_sums(const PackArgs& args, Words sum) {
    store_columns(args, args.sums, sum);
}

// Returns the integer scale with the least squared error (the first of equal ones) among those around the scale that
// fits the group's highest magnitude. Its sign maps the value of highest magnitude to -8, because there is no 8.
FA_INLINE Vec best_group_scale(const Vec (&x)[kInt4Group], const Scale& column) {
    Vec top = zero(), bottom = zero();
    for (int i = 0; i < kInt4Group; ++i) {
        top = max(x[i], top);
        bottom = max(neg(x[i]), bottom);
    }
    const Vec sign = select(less(top, bottom), broadcast(1.0f), broadcast(-1.0f));
    const Vec nearest = round_even(mul(mul(max(top, bottom), column.inverse), broadcast(0.125f)));
    const auto within = [](Vec size) { return min(broadcast(float{kMostInt4Scale}), max(broadcast(1.0f), size)); };
    Vec best = mul(within(nearest), sign), least = broadcast(__builtin_inff());
    for (int offset = -kInt4Reach; offset <= kInt4Reach; ++offset) {
        const Vec scale = mul(within(add(nearest, broadcast(static_cast<float>(offset)))), sign);
        const Vec factor = div(column.inverse, scale), step = mul(column.scale, scale);
        Vec error = zero();
        for (int i = 0; i < kInt4Group; ++i) {
            const Vec q = min(broadcast(7.0f), max(broadcast(-8.0f), round_even(mul(x[i], factor))));
            const Vec difference = sub(x[i], mul(q, step));
            error = add(error, mul(difference, difference));
        }
        const Mask better = less(error, least);
        least = select(better, error, least);
        best = select(better, scale, best);
    }
    return best;
}

}  // namespace

void pack_bfloat16(const PackArgs& args) {
    for (int w = 0; w < args.words; ++w) {
        uint16_t even[kLanes], odd[kLanes];
        store_bf16(even, columns_at(args, 2 * w));
        store_bf16(odd, columns_at(args, 2 * w + 1));
        uint32_t words[kLanes];
        for (int i = 0; i < kLanes; ++i) words[i] = even[i] | uint32_t{odd[i]} << 16;
        store_columns(args, word_of(args, w), load_words(words));
    }
}

void pack_int8(const PackArgs& args) {
    const Scale column = scale_of(args, 127.0f);
    const Words half = broadcast_word(128);
    Words sum = zero_words();
    for (int w = 0; w < args.words; ++w) {
        Words bytes[4];
        for (int i = 0; i < 4; ++i) {
            const Vec x = select(column.finite, columns_at(args, 4 * w + i), zero());
            const Words q = round_to_int(mul(x, column.inverse));
            sum = add_int(sum, q);
            bytes[i] = add_int(q, half);
        }
        uint32_t words[kLanes];
        store_words(words, join_bytes(bytes));
        for (uint32_t& word : words) word ^= 0x80808080u;  // subtracts 128 from each byte
        store_columns(args, word_of(args, w), load_words(words));
    }
    store_sums(args, sum);
}

void pack_int4(const PackArgs& args) {
    const Scale column = scale_of(args, 8.0f * kMostInt4Scale);
    auto* group = static_cast<std::byte*>(args.panel);
    Words sum = zero_words();
    for (int k0 = 0; k0 < 4 * args.words; k0 += kInt4Group, group += kInt4GroupBytes) {
        Vec x[kInt4Group];
        for (int i = 0; i < kInt4Group; ++i) x[i] = select(column.finite, columns_at(args, k0 + i), zero());
        const Vec scale = best_group_scale(x, column), factor = div(column.inverse, scale);
        const auto nibble = [&](int i) {
            return min(broadcast(7.0f), max(broadcast(-8.0f), round_even(mul(x[i], factor))));
        };
        Vec total = zero();
        for (int w = 0; w < kGroupWords / 2; ++w) {
            Words bytes[4];
            for (int i = 0; i < 4; ++i) {
                const Vec low = nibble(4 * w + i), high = nibble(4 * w + i + kInt4Group / 2);
                total = add(total, add(low, high));
                bytes[i] = round_to_int(fma(broadcast(16.0f), high, add(low, broadcast(136.0f))));  // plus 8 for both
            }
            store_columns(args, group + kPanelWidth + w * kPanelWordBytes + args.lane * kWordBytes, join_bytes(bytes));
        }
        sum = add_int(sum, round_to_int(mul(total, scale)));
        int8_t scales[kLanes];
        store_int8(scales, round_to_int(scale));
        for (int i = 0; i < args.n; ++i) group[args.lane + i] = static_cast<std::byte>(scales[i]);
    }
    store_sums(args, sum);
}

}  // namespace fastattn::FASTATTN_TARGET
