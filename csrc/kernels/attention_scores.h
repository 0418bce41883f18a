// S = Q K^T of some query rows and a block.
#pragma once
#include <type_traits>

#include "kernels/attention_rows.h"

namespace fastattn::FASTATTN_TARGET {
namespace {

// int8: each row has the scale of its largest element, times `scale` and log2(e).
FA_INLINE void read_queries_int8(const AttentionArgs& args, QueryRows& q) {
    const float* from = args.q + q.first * args.q_stride;
    const Vec scale = quantize_rows(from, args.q_stride, q.count, args.head_dim, q.room, kMaxRowWords).scale;
    // Above 0, so that a score of -inf stays -inf. NaN stays NaN.
    q.scale = max(broadcast(0x1p-126f), mul(scale, broadcast(args.scale * kLog2E)));
    const bool late = args.bias == nullptr && args.positions == nullptr && args.softcap == 0.0f;
    q.late_scale = late ? q.scale.all() : broadcast(1.0f);
    if constexpr (kInt8Offset == 0) return;
    const Words ones = broadcast_word(0x01010101);
    Words sum[kLanes];
    for (int r = 0; r < q.count; ++r) {
        sum[r] = zero_words();
        for (int i = 0; i < args.head_dim; i += 4 * kLanes)
            sum[r] = dot_int8(sum[r], ones, load_words(q.room + r * kMaxRowWords + i / 4));
    }
    const Words total = reduce_rows(sum, q.count, [](Words a, Words b) { return add_int(a, b); });
    store_words(q.start, mul_int(total, broadcast_word(-kInt8Offset)));
}

// Converts the query rows to the words that the scores take.
template <Format kFormat>
FA_INLINE void read_queries(const AttentionArgs& args, QueryRows& q) {
    const float* from = args.q + q.first * args.q_stride;
    q.words = q.room;
    q.stride = kMaxRowWords;
    if constexpr (kFormat == Format::kFloat32) {
        q.words = reinterpret_cast<const int32_t*>(from);
        q.stride = args.q_stride;
    } else if constexpr (kFormat == Format::kBfloat16) {
        const Vec factor = broadcast(args.scale * kLog2E);
        const auto scaled = [&](int r, int i) {
            return mul(load_lanes(from + r * args.q_stride + i, clamp_to(args.head_dim - i, kLanes)), factor);
        };
        for (int r = 0; r < q.count; ++r) {
            auto* to = reinterpret_cast<uint16_t*>(q.room + r * kMaxRowWords);
#if FASTATTN_HAS_TILES
            for (int i = 0; i < args.head_dim; i += 2 * kLanes)
                store_factors_bf16(to + i, scaled(r, i), scaled(r, i + kLanes));
#else
            for (int i = 0; i < args.head_dim; i += kLanes) store_bf16(to + i, scaled(r, i));
#endif
        }
    } else {
        static_assert(kFormat == Format::kInt8);
        read_queries_int8(args, q);
    }
}

// The keys of a score are the operand with the int8 offset, because all rows share them.
template <class Dot>
struct ScoreDot : Dot {
    FA_INLINE typename Dot::Sum step(typename Dot::Sum sum, Words q, Words key) {
        return Dot::step(sum, std::is_same_v<Dot, DotInt8> ? add_int8_offset(key) : key, q);
    }
};

// S of kRows query rows from `row` on with kVecs vectors of positions from `column` on. float32: times `scale`. int8:
// without the scale of the row.
template <Format kFormat, int kRows, int kVecs>
FA_INLINE void score_tile(const QueryRows& q, BlockScores& scores, const ConstHeadBlock<kFormat>& kv, float scale,
                          int row, int column, const std::byte* ahead) {
    using Dot = typename Kv<kFormat>::Dot;
    const std::byte* keys = kv.keys + column * kWordBytes;
    typename Dot::Sum sum[kRows][kVecs];
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
        typename Dot::Sum start = Dot::zero_sum();
        if constexpr (kFormat == Format::kInt8 && kInt8Offset != 0) start = broadcast_word(q.start[row + r]);
#pragma GCC unroll 8
        for (int c = 0; c < kVecs; ++c) sum[r][c] = start;
    }
    const int32_t* queries = q.words + row * q.stride;
    for_chains<Dot>(0, kv.key_words, sum, [&]<class Chain>(int begin, int end, auto& of_chain) {
        const int64_t skipped = begin * kKeyWordBytes;
        multiply<ScoreDot<Chain>, kRows, kVecs>(queries + begin, q.stride, keys + skipped, kKeyWordBytes, end - begin,
                                                ahead + skipped, of_chain);
    });
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 8
        for (int c = 0; c < kVecs; ++c) {
            Vec s;
            if constexpr (kFormat == Format::kInt8)
                s = mul(to_float(sum[r][c]),
                        load(reinterpret_cast<const float*>(kv.key_scales()) + column + c * kLanes));
            else
                s = sum[r][c];
            if constexpr (kFormat == Format::kFloat32) s = mul(s, broadcast(scale));
            store(scores.s + (row + r) * kBlockLen + column + c * kLanes, s);
        }
}

// S of kRows query rows from `row` on, for the positions in the first `vecs` vectors of a block.
template <Format kFormat, int kRows>
FA_INLINE void score_rows(const QueryRows& q, BlockScores& scores, const ConstHeadBlock<kFormat>& kv, float scale,
                          int row, int vecs, const std::byte* ahead) {
    if constexpr (kRows == 1 || kTileVecs == kBlockVecs) {
        if (vecs == 4) return score_tile<kFormat, kRows, 4>(q, scores, kv, scale, row, 0, ahead);
        if (vecs == 3) return score_tile<kFormat, kRows, 3>(q, scores, kv, scale, row, 0, ahead);
        if (vecs == 2) return score_tile<kFormat, kRows, 2>(q, scores, kv, scale, row, 0, ahead);
        return score_tile<kFormat, kRows, 1>(q, scores, kv, scale, row, 0, ahead);
    } else {
        for (int c = 0; c < vecs; ++c) score_tile<kFormat, kRows, 1>(q, scores, kv, scale, row, c * kLanes, ahead);
    }
}

// S of all rows. Prefetches the block's values meanwhile.
template <Format kFormat>
void score_block(const AttentionArgs& args, const QueryRows& q, BlockScores& scores,
                 const ConstHeadBlock<kFormat>& first, int vecs) {
    for_heads<kFormat>(args, q, first, [&](const auto& kv, int begin, int rows) {
        for_tiles(rows, [&]<int kRows>(int row) {
            score_rows<kFormat, kRows>(q, scores, kv, args.scale, begin + row, vecs, kv.values);
        });
    });
}

// Adds the biases of the positions of a vector to S of row r. In formats other than float32, S has units of log2(e).
template <Format kFormat>
FA_INLINE Vec add_bias(const QueryRows& q, int r, Vec s, Vec bias) {
    if constexpr (kFormat == Format::kFloat32) return add(s, bias);
    if constexpr (kFormat == Format::kInt8) s = mul(s, broadcast(q.scale.of[r]));
    return fma(bias, broadcast(kLog2E), s);
}

// Finishes S of row r with kVecs vectors of a block: adds mask and bias. S at a position that the row does not see is
// -inf. No row sees a position whose bias the table does not have, so the table is read only up to the last one seen.
template <Format kFormat, int kVecs>
FA_INLINE void finish_scores(const AttentionArgs& args, const QueryRows& q, int r, int block, Vec (&s)[kVecs]) {
    const int row = q.first + r, first = block * kBlockLen;
    const Range seen = visible(args, row, block);
    const int64_t head = args.rows_per_head > 0 ? row : 0, relative = first - position_of(args, row);
#pragma GCC unroll 4
    for (int c = 0; c < kVecs; ++c) {
        const int lanes = clamp_to(seen.end - c * kLanes, kLanes);
        if constexpr (kFormat == Format::kFloat32)
            if (args.mask)
                s[c] = add(s[c], load_partial(args.mask + row * args.mask_stride + first + c * kLanes, lanes));
        if (args.bias)
            s[c] = add_bias<kFormat>(q, r, s[c],
                                     load_lanes(args.bias + head * args.bias_stride + relative + c * kLanes, lanes));
        s[c] = seen.lanes_or(s[c], broadcast(-kInf), c * kLanes);
    }
}

}  // namespace
}  // namespace fastattn::FASTATTN_TARGET
