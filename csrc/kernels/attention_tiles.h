// The two products of attention: scores of query rows with a KV block, and its values weighted by probabilities. Both
// are register tiles of kTileRows rows over words of a block, as in the matrix product (linear.h).
#pragma once
#include "kernels/kernel_list.h"
#include "kernels/kv_format.h"

namespace fastattn::FASTATTN_TARGET {
namespace {

constexpr int kBlockVecs = kBlockLen / kLanes;
constexpr int kMaxRowWords = kMaxHeadDim / 2;  // of a query row that is not float32
constexpr float kLog2E = 0x1.715476p+0f;

// In float32 softmax is e^x; else 2^x, and log2(e) is a factor of the query.
template <Format kFormat>
FA_INLINE Vec softmax_exp(Vec x) {
    if constexpr (kFormat == Format::kFloat32)
        return exp(x);
    else
        return exp2_rough(x);
}

// Some query rows on their way through the blocks. Vectors of one lane a row are kept in memory, as rows read their
// own.
struct Group {
    int row, rows;
    const int32_t* q;  // words [rows, q_stride]
    int64_t q_stride;
    float* scores;     // [rows, kBlockLen], then probabilities: words in the first ones of each row
    float* sum;        // [rows, stride]  values weighted by e^(score - row_max)
    int64_t stride;    // head_dim rounded up to whole vectors
    float* q_scale;    // int8: of the row, times `scale` and log2(e)
    int32_t* q_start;  // int8: what the sum of a score starts with, for keys with the offset
    float* row_max;
    float* row_total;
    float* block_max;  // and what is subtracted from scores
    float* block_total;
    float* prob_inverse;  // int8: 1 / scale of the row's probabilities in this block
    float* old_factor;
    float* block_factor;
};

FA_INLINE Group group_in(const AttentionArgs& args) {
    auto* p = args.scratch + (-reinterpret_cast<uintptr_t>(args.scratch) % kLineBytes) / sizeof(float);
    const auto take = [&p](int64_t n) {
        float* taken = p;
        p += n;
        return taken;
    };
    Group g;
    g.stride = (args.head_dim + kLanes - 1) / kLanes * kLanes;
    g.scores = take(kAttentionRows * kBlockLen);
    g.q = reinterpret_cast<int32_t*>(take(kAttentionRows * kMaxRowWords));
    g.q_stride = kMaxRowWords;
    g.sum = take(kAttentionRows * g.stride);
    g.q_scale = take(kLanes);
    g.q_start = reinterpret_cast<int32_t*>(take(kLanes));
    g.row_max = take(kLanes);
    g.row_total = take(kLanes);
    g.block_max = take(kLanes);
    g.block_total = take(kLanes);
    g.prob_inverse = take(kLanes);
    g.old_factor = take(kLanes);
    g.block_factor = take(kLanes);
    return g;
}
static_assert(kAttentionRows == kLanes);
static_assert(kAttentionScratch >= kAttentionRows * (kBlockLen + kMaxRowWords + kMaxHeadDim) + 9 * kLanes + 16);

// Positions that query row `row` sees.
FA_INLINE int visible(const AttentionArgs& args, int row) {
    const int own = args.q_position + (args.rows_per_head > 0 ? 0 : row) + 1;
    return args.causal && own < args.kv_len ? own : args.kv_len;
}
FA_INLINE int visible_in_block(const AttentionArgs& args, int row, int block) {
    return clamp_to(visible(args, row) - block * kBlockLen, kBlockLen);
}

// The rows of the group in the words that the scores take.
template <Format kFormat>
FA_INLINE void read_queries(const AttentionArgs& args, Group& g) {
    const float* q = args.q + g.row * args.q_stride;
    auto* words = const_cast<int32_t*>(g.q);
    if constexpr (kFormat == Format::kFloat32) {
        g.q = reinterpret_cast<const int32_t*>(q);
        g.q_stride = args.q_stride;
    } else if constexpr (kFormat == Format::kBfloat16) {
        const Vec factor = broadcast(args.scale * kLog2E);
        for (int r = 0; r < g.rows; ++r)
            for (int i = 0; i < args.head_dim; i += kLanes)
                store_bf16(reinterpret_cast<uint16_t*>(words + r * kMaxRowWords) + i,
                           mul(load_lanes(q + r * args.q_stride + i, clamp_to(args.head_dim - i, kLanes)), factor));
    } else {
        const Vec scale = quantize_rows(q, args.q_stride, g.rows, args.head_dim, words, kMaxRowWords).scale;
        // Above 0, so that it leaves a score of -inf as it is; a NaN stays.
        store(g.q_scale, max(broadcast(0x1p-126f), mul(scale, broadcast(args.scale * kLog2E))));
        if constexpr (kInt8Offset != 0) {
            const Words ones = broadcast_word(0x01010101);
            Words sum[kLanes];
            for (int r = 0; r < g.rows; ++r) {
                sum[r] = zero_words();
                for (int i = 0; i < args.head_dim; i += 4 * kLanes)
                    sum[r] = dot_int8(sum[r], ones, load_words(words + r * kMaxRowWords + i / 4));
            }
            const Words total = reduce_rows(sum, g.rows, [](Words a, Words b) { return add_int(a, b); });
            store_words(g.q_start, mul_int(total, broadcast_word(-kInt8Offset)));
        }
    }
}

// sum[r, c] += sum over w of a[r, w] * b[w, c], for `words` words of kVecs vectors each, b_stride bytes apart. One row
// reads its words once, at the rate of memory: `ahead` are those to ask for meanwhile, as many and as far apart.
template <class Dot, int kRows, int kVecs>
FA_INLINE void multiply(const int32_t* a, int64_t a_stride, const std::byte* b, int64_t b_stride, int words,
                        const std::byte* ahead, typename Dot::Sum (&sum)[kRows][kVecs]) {
    for (int w = 0; w < words; ++w) {
        if constexpr (kRows == 1)
            for (int c = 0; c < kVecs; ++c) __builtin_prefetch(ahead + w * b_stride + c * kLineBytes);
        Words y[kVecs];
#pragma GCC unroll 8
        for (int c = 0; c < kVecs; ++c) y[c] = load_words(b + w * b_stride + c * kLineBytes);
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r) {
            const Words x = broadcast_word(a[r * a_stride + w]);
#pragma GCC unroll 8
            for (int c = 0; c < kVecs; ++c) sum[r][c] = Dot::step(sum[r][c], x, y[c]);
        }
    }
}

// The keys of a score are the operand that takes the offset of int8, as they are shared by all rows.
template <Format kFormat>
struct ScoreDot : Kv<kFormat>::Dot {
    using Dot = typename Kv<kFormat>::Dot;
    FA_INLINE typename Dot::Sum step(typename Dot::Sum sum, Words q, Words key) {
        return Dot::step(sum, kFormat == Format::kInt8 ? add_int8_offset(key) : key, q);
    }
};

// Scores of kRows query rows from `row` on with kVecs vectors of positions, from position `column` on. float32: times
// scale. int8: without the row's factor.
template <Format kFormat, int kRows, int kVecs>
FA_INLINE void score_tile(const Group& g, const HeadBlock<kFormat, const std::byte>& block, float scale, int row,
                          int column, const std::byte* ahead) {
    using Dot = typename Kv<kFormat>::Dot;
    const int32_t* q = g.q + row * g.q_stride;
    const std::byte* keys = block.keys + column * kWordBytes;
    typename Dot::Sum sum[kRows][kVecs];
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
        typename Dot::Sum start = Dot::zero_sum();
        if constexpr (kFormat == Format::kInt8 && kInt8Offset != 0) start = broadcast_word(g.q_start[row + r]);
#pragma GCC unroll 8
        for (int c = 0; c < kVecs; ++c) sum[r][c] = start;
    }
    multiply<ScoreDot<kFormat>, kRows, kVecs>(q, g.q_stride, keys, kKeyWordBytes, block.key_words, ahead, sum);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 8
        for (int c = 0; c < kVecs; ++c) {
            Vec s;
            if constexpr (kFormat == Format::kInt8)
                s = mul(to_float(sum[r][c]),
                        load(reinterpret_cast<const float*>(block.key_scales()) + column + c * kLanes));
            else
                s = sum[r][c];
            if constexpr (kFormat == Format::kFloat32) s = mul(s, broadcast(scale));
            store(g.scores + (row + r) * kBlockLen + column + c * kLanes, s);
        }
}

// Scores with the positions of the first `vecs` vectors of a block.
template <Format kFormat, int kRows>
FA_INLINE void score_rows(const Group& g, const HeadBlock<kFormat, const std::byte>& block, float scale, int row,
                          int vecs, const std::byte* ahead) {
    if constexpr (kRows == 1 || kTileVecs == kBlockVecs) {
        if (vecs == 4) return score_tile<kFormat, kRows, 4>(g, block, scale, row, 0, ahead);
        if (vecs == 3) return score_tile<kFormat, kRows, 3>(g, block, scale, row, 0, ahead);
        if (vecs == 2) return score_tile<kFormat, kRows, 2>(g, block, scale, row, 0, ahead);
        return score_tile<kFormat, kRows, 1>(g, block, scale, row, 0, ahead);
    } else {
        for (int c = 0; c < vecs; ++c) score_tile<kFormat, kRows, 1>(g, block, scale, row, c * kLanes, ahead);
    }
}

// What the rows of a tile see of a block.
template <int kRows>
struct Seen {
    int count[kRows];
    int all;   // words of values that every row sees wholly (int8: all words that any row sees part of)
    int last;  // words of which the last row sees anything
};

template <Format kFormat, int kRows>
FA_INLINE Seen<kRows> seen_by(const AttentionArgs& args, int row, int block) {
    constexpr int kPositions = kGroup<kFormat>;
    Seen<kRows> seen;
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) seen.count[r] = visible_in_block(args, row + r, block);
    seen.last = (seen.count[kRows - 1] + kPositions - 1) / kPositions;
    seen.all = kFormat == Format::kInt8 ? seen.last : seen.count[0] / kPositions;
    return seen;
}

// Merges the block's values, weighted by the rows' probabilities, into their sums: kVecs vectors of elements from `d`
// on. `lanes` is the number of elements of the (only) vector where that is not a whole one.
template <Format kFormat, int kRows, int kVecs, bool kTail>
FA_INLINE void value_tile(const Group& g, const HeadBlock<kFormat, const std::byte>& block, const Seen<kRows>& seen,
                          int row, int d, int lanes, const std::byte* ahead) {
    using Dot = typename Kv<kFormat>::Dot;
    const auto* probs = reinterpret_cast<const int32_t*>(g.scores + row * kBlockLen);
    const std::byte* values = block.values + d * kWordBytes;
    typename Dot::Sum sum[kRows][kVecs];
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 8
        for (int c = 0; c < kVecs; ++c) sum[r][c] = Dot::zero_sum();
    const auto load_value = [&](int w, int c) {
        const std::byte* from = values + w * block.value_stride + c * kLineBytes;
        return kTail ? as_words(load_partial(reinterpret_cast<const float*>(from), lanes)) : load_words(from);
    };
    if constexpr (kTail)
        for (int w = 0; w < seen.all; ++w) {
            const Words value = load_value(w, 0);
#pragma GCC unroll 8
            for (int r = 0; r < kRows; ++r)
                sum[r][0] = Dot::step(sum[r][0], broadcast_word(probs[r * kBlockLen + w]), value);
        }
    else
        multiply<Dot, kRows, kVecs>(probs, kBlockLen, values, block.value_stride, seen.all, ahead + d * kWordBytes,
                                    sum);
    if constexpr (kFormat != Format::kInt8)
        for (int w = seen.all; w < seen.last; ++w) {  // rows see more and more of these
            Words value[kVecs];
#pragma GCC unroll 8
            for (int c = 0; c < kVecs; ++c) value[c] = load_value(w, c);
#pragma GCC unroll 8
            for (int r = 0; r < kRows; ++r) {
                const int positions = seen.count[r] - w * kGroup<kFormat>;
                if (positions <= 0) continue;
                const Words p = broadcast_word(probs[r * kBlockLen + w]);
                const Words some = broadcast_word(positions < kGroup<kFormat> ? 0xffff : -1);
#pragma GCC unroll 8
                for (int c = 0; c < kVecs; ++c)
                    sum[r][c] =
                        Dot::step(sum[r][c], p, kFormat == Format::kBfloat16 ? and_words(value[c], some) : value[c]);
            }
        }
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
        const Vec old_factor = broadcast(g.old_factor[row + r]), block_factor = broadcast(g.block_factor[row + r]);
        float* to = g.sum + (row + r) * g.stride + d;
#pragma GCC unroll 8
        for (int c = 0; c < kVecs; ++c) {
            Vec block_sum;
            if constexpr (kFormat == Format::kInt8)
                block_sum = to_float(sum[r][c]);
            else
                block_sum = sum[r][c];
            store(to + c * kLanes, fma(block_sum, block_factor, mul(load(to + c * kLanes), old_factor)));
        }
    }
}

template <Format kFormat, int kRows>
FA_INLINE void value_rows(const AttentionArgs& args, const Group& g, const HeadBlock<kFormat, const std::byte>& kv,
                          int row, int block, const std::byte* ahead) {
    constexpr int kWide = kRows == 1 ? kBlockVecs : kTileVecs;
    const Seen<kRows> seen = seen_by<kFormat, kRows>(args, g.row + row, block);
    int d = 0;
    for (; d + kWide * kLanes <= args.head_dim; d += kWide * kLanes)
        value_tile<kFormat, kRows, kWide, false>(g, kv, seen, row, d, kLanes, ahead);
    if constexpr (kWide > 2)
        if (d + 2 * kLanes <= args.head_dim) {
            value_tile<kFormat, kRows, 2, false>(g, kv, seen, row, d, kLanes, ahead);
            d += 2 * kLanes;
        }
    if constexpr (kWide > 1)
        if (d + kLanes <= args.head_dim) {
            value_tile<kFormat, kRows, 1, false>(g, kv, seen, row, d, kLanes, ahead);
            d += kLanes;
        }
    if (d < args.head_dim) value_tile<kFormat, kRows, 1, true>(g, kv, seen, row, d, args.head_dim - d, ahead);
}

// Calls run.template operator()<n>(row) for tiles of n rows.
template <class F>
FA_INLINE void for_tiles(int rows, const F& run) {
    int row = 0;
    for (; row + kTileRows <= rows; row += kTileRows) run.template operator()<kTileRows>(row);
    static_assert(kTileRows == 6);
    switch (rows - row) {
        case 1: return run.template operator()<1>(row);
        case 2: return run.template operator()<2>(row);
        case 3: return run.template operator()<3>(row);
        case 4: return run.template operator()<4>(row);
        case 5: return run.template operator()<5>(row);
        default: return;
    }
}

}  // namespace
}  // namespace fastattn::FASTATTN_TARGET
