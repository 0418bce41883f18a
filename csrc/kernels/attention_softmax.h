// P = e^(S - m) of a block, and its merge into the running maximum m and sum l of the rows.
#pragma once
#include "kernels/attention_scores.h"

namespace fastattn::FASTATTN_TARGET {
namespace {

// Softmax uses e^x in float32. Other formats use 2^x, with log2(e) as a factor of the query.
template <Format kFormat>
FA_INLINE Vec softmax_exp(Vec x) {
    if constexpr (kFormat == Format::kFloat32)
        return exp(x);
    else  // int8: a score and the shift are rounded products
        return exp2_rough<kFormat == Format::kBfloat16>(x);
}

// If all scores are -inf, the shift is 0, so that the probabilities are 0 and not NaN. (The maximum may miss a NaN
// score; the sum does not.)
FA_INLINE Vec shift_of(Vec highest) {
    return select(equal(highest, broadcast(-kInf)), zero(), highest);
}

// P of the scores `s` of one row, relative to `shift`.
template <Format kFormat>
FA_INLINE Vec probability(Vec s, float late_scale, float shift) {
    return softmax_exp<kFormat>(kFormat == Format::kInt8 ? fma(s, broadcast(late_scale), broadcast(-shift))
                                                         : sub(s, broadcast(shift)));
}

template <int kVecs, class F>
FA_INLINE auto in_pairs(const F& combine, const auto (&x)[kVecs]) {
    if constexpr (kVecs == 1) return x[0];
    if constexpr (kVecs == 2) return combine(x[0], x[1]);
    if constexpr (kVecs == 3) return combine(combine(x[0], x[1]), x[2]);
    if constexpr (kVecs == 4) return combine(combine(x[0], x[1]), combine(x[2], x[3]));
}

// Finishes S and finds the block's maximum of each row, in the units of the exponent.
template <Format kFormat, int kVecs>
FA_INLINE void find_maxima(const AttentionArgs& args, const QueryRows& q, BlockScores& scores, int block) {
    Words highest[kLanes];
    const bool finished = args.mask == nullptr && args.bias == nullptr && all_see(args, q, block);
    for (int r = 0; r < q.count; ++r) {
        float* at = scores.s + r * kBlockLen;
        Vec s[kVecs];
#pragma GCC unroll 4
        for (int c = 0; c < kVecs; ++c) s[c] = load(at + c * kLanes);
        if (!finished) {
            finish_scores<kFormat, kVecs>(args, q, r, block, s);
#pragma GCC unroll 4
            for (int c = 0; c < kVecs; ++c) store(at + c * kLanes, s[c]);
        }
        highest[r] = as_words(in_pairs<kVecs>([](Vec a, Vec b) { return max(a, b); }, s));
    }
    const Vec maxima = max_rows(highest, q.count);
    scores.m = kFormat == Format::kInt8 ? mul(maxima, q.late_scale.all()) : maxima;
}

// int8: rounds P times the scales of the values, already in place of S, to bytes with one scale per row. `highest` has
// the bits of each row's highest one. Stores the scales as the rows' factors.
template <int kVecs>
FA_INLINE void round_probabilities(BlockScores& scores, Words (&highest)[kLanes], int rows) {
    const RowScales scales = row_scales(max_rows_or_nan(highest, rows));
    scores.factor = scales.scale;
    PerRow inverse;
    inverse = scales.inverse;
    for (int r = 0; r < rows; ++r) {
        float* at = scores.s + r * kBlockLen;
        const Vec factor = broadcast(inverse.of[r]);
        Words p[4];
#pragma GCC unroll 4
        for (int c = 0; c < 4; ++c) p[c] = c < kVecs ? round_to_int(mul(load(at + c * kLanes), factor)) : zero_words();
        store_words(at, pack_int8(p[0], p[1], p[2], p[3]));
    }
}

// Stores P of a row in the format of the values; int8: as numbers, which are rounded later.
template <Format kFormat, int kVecs>
FA_INLINE void store_probabilities(float* at, const Vec (&p)[kVecs]) {
    if constexpr (kFormat == Format::kBfloat16 && FASTATTN_HAS_TILES) {  // tiles read pairs of vectors
#pragma GCC unroll 4
        for (int c = 0; c < kVecs; c += 2)
            store_factors_bf16(reinterpret_cast<uint16_t*>(at) + c * kLanes, p[c], c + 1 < kVecs ? p[c + 1] : zero());
    } else {
#pragma GCC unroll 4
        for (int c = 0; c < kVecs; ++c) {
            if constexpr (kFormat == Format::kBfloat16)
                store_bf16(reinterpret_cast<uint16_t*>(at) + c * kLanes, p[c]);
            else
                store(at + c * kLanes, p[c]);
        }
    }
}

// Replaces S by P, as words, and stores the sums of P.
template <Format kFormat, int kVecs>
FA_INLINE void exponentiate(const AttentionArgs& args, const QueryRows& q, BlockScores& scores,
                            const ConstHeadBlock<kFormat>& kv, int block) {
    constexpr bool kInteger = kFormat == Format::kInt8;
    PerRow shift;
    shift = shift_of(scores.m.all());
    const bool whole = all_see(args, q, block);
    Words total[kLanes], highest[kLanes];
    const std::byte* value_scales = kv.value_scales();
    for (int r = 0; r < q.count; ++r) {
        float* at = scores.s + r * kBlockLen;
        Vec p[kVecs];
#pragma GCC unroll 4
        for (int c = 0; c < kVecs; ++c)
            p[c] = probability<kFormat>(load(at + c * kLanes), q.late_scale.of[r], shift.of[r]);
        total[r] = as_words(in_pairs<kVecs>([](Vec a, Vec b) { return add(a, b); }, p));
        if constexpr (kInteger) {
            Words bits[kVecs];
            if (args.rows_per_head > 0 && r > 0 && (q.first + r) % args.rows_per_head == 0) value_scales += kv.bytes();
#pragma GCC unroll 4
            for (int c = 0; c < kVecs; ++c)
                p[c] = mul(p[c], load(reinterpret_cast<const float*>(value_scales) + c * kLanes));
            if (!whole) {  // positions that a row does not see may have any scale
                const Range seen = visible(args, q.first + r, block);
#pragma GCC unroll 4
                for (int c = 0; c < kVecs; ++c) p[c] = seen.lanes_or(p[c], zero(), c * kLanes);
            }
#pragma GCC unroll 4
            for (int c = 0; c < kVecs; ++c) bits[c] = as_words(p[c]);
            highest[r] = in_pairs<kVecs>([](Words a, Words b) { return max_unsigned(a, b); }, bits);
        }
        store_probabilities<kFormat, kVecs>(at, p);
    }
    scores.l = add_rows(total, q.count);
    if constexpr (kInteger) round_probabilities<kVecs>(scores, highest, q.count);
}

// Merges the block into m and l of all rows, and stores the factors for O. With m_b and l_b of the block:
//   m' = max(m, m_b)    l' = l e^(m - m') + l_b e^(m_b - m')
// A row that has only -inf in the block (l_b = 0) does not change.
template <Format kFormat>
FA_INLINE void merge_sums(BlockScores& scores, RunningRows& running) {
    const Vec m = running.m.all(), block_m = scores.m.all();
    const Vec new_m = max(m, block_m);
    const Vec shift = shift_of(new_m);
    const Vec factor = softmax_exp<kFormat>(sub(m, shift)), block_factor = softmax_exp<kFormat>(sub(block_m, shift));
    running.m = new_m;
    running.l = fma(scores.l.all(), block_factor, mul(running.l.all(), factor));
    running.factor = factor;
    scores.factor = kFormat == Format::kInt8 ? mul(block_factor, scores.factor.all()) : block_factor;
}

template <Format kFormat>
void find_maxima(const AttentionArgs& args, const QueryRows& q, BlockScores& scores, int block, int vecs) {
    switch (vecs) {
        case 1: return find_maxima<kFormat, 1>(args, q, scores, block);
        case 2: return find_maxima<kFormat, 2>(args, q, scores, block);
        case 3: return find_maxima<kFormat, 3>(args, q, scores, block);
        default: return find_maxima<kFormat, 4>(args, q, scores, block);
    }
}

// P of the block and its merge. find_maxima is called before.
template <Format kFormat>
void exponentiate(const AttentionArgs& args, Workspace& work, const ConstHeadBlock<kFormat>& kv, int block, int vecs) {
    switch (vecs) {
        case 1: exponentiate<kFormat, 1>(args, work.q, work.block, kv, block); break;
        case 2: exponentiate<kFormat, 2>(args, work.q, work.block, kv, block); break;
        case 3: exponentiate<kFormat, 3>(args, work.q, work.block, kv, block); break;
        default: exponentiate<kFormat, 4>(args, work.q, work.block, kv, block);
    }
    merge_sums<kFormat>(work.block, work.running);
}

}  // namespace
}  // namespace fastattn::FASTATTN_TARGET
