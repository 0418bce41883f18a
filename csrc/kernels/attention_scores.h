// The first half of attention (attention.h): rows of Q, their scores S with a block, and the probabilities P.
#pragma once
#include "kernels/kernel_list.h"
#include "kernels/kv_format.h"

namespace fastattn::FASTATTN_TARGET {
namespace {

constexpr int kBlockVecs = kBlockLen / kLanes;
constexpr int kMaxRowWords = kMaxHeadDim / 2;  // words per query row in formats other than float32
constexpr float kLog2E = 0x1.715476p+0f;

// Softmax uses e^x in float32. Other formats use 2^x, with log2(e) as a factor of the query.
template <Format kFormat>
FA_INLINE Vec softmax_exp(Vec x) {
    if constexpr (kFormat == Format::kFloat32)
        return exp(x);
    else
        return exp2_rough(x);
}

// Some query rows while they visit the blocks. Values with one lane per row are in memory, because a row reads its own.
struct Group {
    int row, rows;
    const int32_t* q;  // words [rows, q_stride]
    int64_t q_stride;
    float* scores;        // S [rows, kBlockLen], then P as words at the start of each row
    float* sum;           // O [rows, stride], relative to row_max
    int64_t stride;       // head_dim rounded up to whole vectors
    float* q_scale;       // int8: scale of the query row, times `scale` and log2(e)
    int32_t* q_start;     // int8: initial sum of a score, which cancels the offset of the keys
    float* row_max;       // m [rows], the running maximum
    float* row_total;     // l [rows], the running sum
    float* block_max;     // maximum of the block, subtracted from S
    float* block_total;   // sum of the block's P
    float* prob_inverse;  // int8: 1 / scale of the row's P in this block
    float* old_factor;    // e^(m - m'), the factor of O in a merge
    float* block_factor;  // e^(block_max - m'), the factor of the block's P V; int8: times the scale of P
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

// Converts the query rows of the group to the words that the scores take.
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
        // Above 0, so that a score of -inf stays -inf. NaN stays NaN.
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

// sum[r, c] += sum over w of a[r, w] * b[w, c]: `words` words of kVecs vectors each, b_stride bytes apart. A single row
// reads its words once, at the speed of memory, and prefetches as many words from `ahead` with the same stride.
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

// The keys of a score are the operand with the int8 offset, because all rows share them.
template <Format kFormat>
struct ScoreDot : Kv<kFormat>::Dot {
    using Dot = typename Kv<kFormat>::Dot;
    FA_INLINE typename Dot::Sum step(typename Dot::Sum sum, Words q, Words key) {
        return Dot::step(sum, kFormat == Format::kInt8 ? add_int8_offset(key) : key, q);
    }
};

// Scores of kRows query rows from `row` on with kVecs vectors of positions from `column` on. float32: times `scale`.
// int8: without the factor of the row (q_scale).
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

// Scores with the positions in the first `vecs` vectors of a block.
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

template <int kVecs, class F>
FA_INLINE auto in_pairs(const F& combine, const auto (&x)[kVecs]) {
    if constexpr (kVecs == 1) return x[0];
    if constexpr (kVecs == 2) return combine(x[0], x[1]);
    if constexpr (kVecs == 3) return combine(combine(x[0], x[1]), x[2]);
    if constexpr (kVecs == 4) return combine(combine(x[0], x[1]), combine(x[2], x[3]));
}

// The block's maximum of each row, in the units of the exponent. Scores that a row does not see become -inf.
template <Format kFormat, int kVecs>
FA_INLINE void find_maxima(const AttentionArgs& args, const Group& g, int block) {
    Words highest[kLanes];
    const bool whole = args.mask == nullptr && visible_in_block(args, g.row, block) == kBlockLen;
    for (int r = 0; r < g.rows; ++r) {
        float* scores = g.scores + r * kBlockLen;
        Vec s[kVecs];
#pragma GCC unroll 4
        for (int c = 0; c < kVecs; ++c) s[c] = load(scores + c * kLanes);
        if (!whole) {
            const int row = g.row + r, count = visible_in_block(args, row, block);
#pragma GCC unroll 4
            for (int c = 0; c < kVecs; ++c) {
                const int lanes = clamp_to(count - c * kLanes, kLanes);
                if constexpr (kFormat == Format::kFloat32)
                    if (args.mask)
                        s[c] = add(
                            s[c],
                            load_partial(args.mask + row * args.mask_stride + block * kBlockLen + c * kLanes, lanes));
                s[c] = select(first_lanes(lanes), s[c], broadcast(-kInf));
                store(scores + c * kLanes, s[c]);
            }
        }
        highest[r] = as_words(in_pairs<kVecs>([](Vec a, Vec b) { return max(a, b); }, s));
    }
    Vec maxima = max_rows(highest, g.rows);
    if constexpr (kFormat == Format::kInt8) maxima = mul(maxima, load(g.q_scale));
    store(g.block_max, maxima);
}

// If all scores are -inf, the shift is 0, so that the probabilities are 0 and not NaN. (The maximum may miss a NaN
// score; the sum does not.)
FA_INLINE Vec shift_of(Vec highest) {
    return select(equal(highest, broadcast(-kInf)), zero(), highest);
}

// Replaces S by P = e^(S - block_max), as words, and stores the sums of P.
template <Format kFormat, int kVecs>
FA_INLINE void exponentiate(const AttentionArgs& args, const Group& g, const HeadBlock<kFormat, const std::byte>& kv,
                            int block) {
    constexpr bool kInteger = kFormat == Format::kInt8;
    alignas(64) float shift[kLanes];
    store(shift, shift_of(load(g.block_max)));
    const bool whole = visible_in_block(args, g.row, block) == kBlockLen;
    Words total[kLanes], highest[kLanes];
    const std::byte* value_scales = kv.value_scales();
    for (int r = 0; r < g.rows; ++r) {
        float* scores = g.scores + r * kBlockLen;
        Vec p[kVecs];
#pragma GCC unroll 4
        for (int c = 0; c < kVecs; ++c) {
            const Vec s = load(scores + c * kLanes);
            p[c] = softmax_exp<kFormat>(kInteger ? fma(s, broadcast(g.q_scale[r]), broadcast(-shift[r]))
                                                 : sub(s, broadcast(shift[r])));
        }
        total[r] = as_words(in_pairs<kVecs>([](Vec a, Vec b) { return add(a, b); }, p));
        if constexpr (kInteger) {
            Words bits[kVecs];
            if (args.rows_per_head > 0 && r > 0 && (g.row + r) % args.rows_per_head == 0) value_scales += kv.bytes();
#pragma GCC unroll 4
            for (int c = 0; c < kVecs; ++c)
                p[c] = mul(p[c], load(reinterpret_cast<const float*>(value_scales) + c * kLanes));
            if (!whole) {  // positions that a row does not see may have any scale
                const int count = visible_in_block(args, g.row + r, block);
#pragma GCC unroll 4
                for (int c = 0; c < kVecs; ++c)
                    p[c] = select(first_lanes(clamp_to(count - c * kLanes, kLanes)), p[c], zero());
            }
#pragma GCC unroll 4
            for (int c = 0; c < kVecs; ++c) bits[c] = as_words(p[c]);
            highest[r] = in_pairs<kVecs>([](Words a, Words b) { return max_unsigned(a, b); }, bits);
        }
#pragma GCC unroll 4
        for (int c = 0; c < kVecs; ++c) {
            if constexpr (kFormat == Format::kBfloat16)
                store_bf16(reinterpret_cast<uint16_t*>(scores) + c * kLanes, p[c]);
            else
                store(scores + c * kLanes, p[c]);
        }
    }
    store(g.block_total, add_rows(total, g.rows));
    if constexpr (kInteger) {
        const RowScales scales = row_scales(max_rows_or_nan(highest, g.rows));
        store(g.prob_inverse, scales.inverse);
        store(g.block_factor, scales.scale);
        for (int r = 0; r < g.rows; ++r) {
            float* scores = g.scores + r * kBlockLen;
            const Vec inverse = broadcast(g.prob_inverse[r]);
            Words q[4];
#pragma GCC unroll 4
            for (int c = 0; c < 4; ++c)
                q[c] = c < kVecs ? round_to_int(mul(load(scores + c * kLanes), inverse)) : zero_words();
            store_words(scores, pack_int8(q[0], q[1], q[2], q[3]));
        }
    }
}

// Merges the block into m and l of all rows, and stores the factors for O:
//   m' = max(m, block_max)    l' = l e^(m - m') + block_total e^(block_max - m')
// A row that has only -inf in the block (block_total 0) does not change.
template <Format kFormat>
FA_INLINE void merge_totals(const Group& g) {
    const Vec old_max = load(g.row_max), block_max = load(g.block_max);
    const Vec new_max = max(old_max, block_max);
    const Vec shift = shift_of(new_max);
    const Vec old_factor = softmax_exp<kFormat>(sub(old_max, shift));
    const Vec block_factor = softmax_exp<kFormat>(sub(block_max, shift));
    store(g.row_max, new_max);
    store(g.row_total, fma(load(g.block_total), block_factor, mul(load(g.row_total), old_factor)));
    store(g.old_factor, old_factor);
    store(g.block_factor, kFormat == Format::kInt8 ? mul(block_factor, load(g.block_factor)) : block_factor);
}

}  // namespace
}  // namespace fastattn::FASTATTN_TARGET
