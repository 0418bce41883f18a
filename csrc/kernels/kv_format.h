// Arithmetic of each format of keys and values, and access to a KV block (docs/design/0006-kv-dtypes.md), for the
// kernels that write and read them.
#pragma once
#include <cstddef>

#include "kernels/dot.h"
#include "kernels/math.h"

namespace fastattn::FASTATTN_TARGET {

template <Format kFormat>
struct Kv;
template <>
struct Kv<Format::kFloat32> {
    using Dot = DotFloat32;
};
template <>
struct Kv<Format::kBfloat16> {
    using Dot = DotBfloat16;
};
template <>
struct Kv<Format::kInt8> {
    using Dot = DotInt8;
};

FA_INLINE Vec load_lanes(const float* p, int n) {
    return n == kLanes ? load(p) : load_partial(p, n);
}

template <Format kFormat>
inline constexpr int kGroup = traits_of(kFormat).word_values;

inline constexpr int64_t kLineBytes = 64;
inline constexpr int64_t kKeyWordBytes = kBlockLen * kWordBytes;  // one word of every position

FA_INLINE int clamp_to(int x, int high) {
    return x < 0 ? 0 : x < high ? x : high;
}

// One head's part of a block.
template <Format kFormat, class Byte>
struct HeadBlock {
    Byte* keys;    // words [key_words, kBlockLen]: elements of a position along head_dim, zero after head_dim
    Byte* values;  // words [kBlockLen / kGroup, head_dim]: positions of an element
    int key_words;
    int64_t value_stride;  // bytes of one word of every element
    KvHeadLayout layout;

    FA_INLINE HeadBlock at(Byte* base, int head_dim) {
        HeadBlock b;
        b.layout = kv_head_layout(kFormat, head_dim);
        b.key_words = static_cast<int>(b.layout.key_words);
        b.value_stride = int64_t{head_dim} * kWordBytes;
        b.keys = base;
        b.values = base + b.layout.value_offset;
        return b;
    }
    // int8: floats [kBlockLen] for keys, then for values
    Byte* key_scales() const { return keys + layout.scale_offset; }
    Byte* value_scales() const { return key_scales() + kKeyWordBytes; }
    int64_t bytes() const { return layout.bytes; }
};

// Lane r of the result combines the lanes of w[r], with the tree of reduce_add.
template <class F>
FA_INLINE Words reduce_rows(Words (&w)[kLanes], int rows, const F& combine) {
    for (int r = rows; r < kLanes; ++r) w[r] = zero_words();
#if defined(FASTATTN_HAS_FOLD_ROWS)
    return fold_rows(w, combine);
#else
    transpose(w);
#pragma GCC unroll 4
    for (int half = kLanes / 2; half > 0; half /= 2)
#pragma GCC unroll 8
        for (int i = 0; i < half; ++i) w[i] = combine(w[i], w[i + half]);
    return w[0];
#endif
}
FA_INLINE Vec add_rows(Words (&w)[kLanes], int rows) {
    return as_floats(reduce_rows(w, rows, [](Words a, Words b) { return as_words(add(as_floats(a), as_floats(b))); }));
}
FA_INLINE Vec max_rows(Words (&w)[kLanes], int rows) {
    return as_floats(reduce_rows(w, rows, [](Words a, Words b) { return as_words(max(as_floats(a), as_floats(b))); }));
}
// The bits of non-negative numbers are ordered like the numbers, and NaN is above them all. So no NaN is missed.
FA_INLINE Vec max_rows_or_nan(Words (&w)[kLanes], int rows) {
    return as_floats(reduce_rows(w, rows, [](Words a, Words b) { return max_unsigned(a, b); }));
}

// int8: x becomes round(x / scale), one lane per row. A row with NaN or infinity has a NaN scale and zeros. A row that
// is too small for a finite inverse becomes zeros.
struct RowScales {
    Vec scale, inverse;
};
FA_INLINE RowScales row_scales(Vec highest) {
    const Mask finite = equal(sub(highest, highest), zero());
    const Vec most = broadcast(127.0f);
    const Vec inverse = select(finite, div(most, highest), zero());
    return {select(finite, div(highest, most), broadcast(__builtin_nanf(""))),
            select(less(broadcast(0x1p-120f), highest), inverse, zero())};
}

// Loads four vectors from x on: `n` numbers, then zeros.
FA_INLINE void load_four(const float* x, int n, Vec (&v)[4]) {
    if (n >= 4 * kLanes) {
#pragma GCC unroll 4
        for (int c = 0; c < 4; ++c) v[c] = load(x + c * kLanes);
    } else {
#pragma GCC unroll 4
        for (int c = 0; c < 4; ++c) {
            const int lanes = clamp_to(n - c * kLanes, kLanes);
            v[c] = lanes > 0 ? load_partial(x + c * kLanes, lanes) : zero();
        }
    }
}

// Writes rows [rows <= kLanes, n] as int8, `stride` words apart, zero after n up to whole vectors.
FA_INLINE RowScales quantize_rows(const float* x, int64_t x_stride, int rows, int n, int32_t* out, int64_t stride) {
    Words highest[kLanes];
    for (int r = 0; r < rows; ++r) {
        highest[r] = zero_words();
        for (int i = 0; i < n; i += 4 * kLanes) {
            Vec v[4];
            load_four(x + r * x_stride + i, n - i, v);
#pragma GCC unroll 4
            for (int c = 0; c < 4; ++c) highest[r] = max_unsigned(highest[r], magnitude_bits(v[c]));
        }
    }
    const RowScales scales = row_scales(max_rows_or_nan(highest, rows));
    alignas(64) float inverse[kLanes];
    store(inverse, scales.inverse);
    for (int r = 0; r < rows; ++r) {
        const Vec factor = broadcast(inverse[r]);
        for (int i = 0; i < n; i += 4 * kLanes) {
            Vec v[4];
            load_four(x + r * x_stride + i, inverse[r] == 0.0f ? 0 : n - i, v);
            store_words(out + r * stride + i / 4,
                        pack_int8(round_to_int(mul(v[0], factor)), round_to_int(mul(v[1], factor)),
                                  round_to_int(mul(v[2], factor)), round_to_int(mul(v[3], factor))));
        }
    }
    return scales;
}

}  // namespace fastattn::FASTATTN_TARGET
