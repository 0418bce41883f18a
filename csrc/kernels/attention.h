// Softmax attention over KV blocks, one template for every format (docs/design/0006-kv-dtypes.md).
//
// Online softmax, as in the FlashAttention papers. A query row visits its blocks in order. A block's scores S give its
// maximum, P = e^(S - maximum) and the sum of P. They are merged into the row's running maximum m (row_max), running
// sum l (row_total) and output accumulator O (sum). The output is O / l.
//
// No arithmetic of a row involves another row. So a row's bits do not depend on the grouping of rows, the chunks of a
// prompt or the current length of the sequence. Two rules make this exact:
// - A block of which a row sees nothing is not merged into that row.
// - A value that a row does not see is not multiplied by its probability 0: 0 * NaN is NaN, and a sum that underflowed
//   to -0 would become +0. (Sums of probabilities may include such zeros: no term is negative. Neither case can happen
//   to the integers of int8.)
#pragma once
#include "kernels/attention_scores.h"

namespace fastattn::FASTATTN_TARGET {
namespace {

// The part of a block that the rows of a tile see.
template <int kRows>
struct Seen {
    int count[kRows];
    int all;   // words of values that every row sees completely (int8: all words that any row sees part of)
    int last;  // words of which the last row sees at least a part
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

// Merges P V of the block into O for the rows of a tile: kVecs vectors of elements from `d` on. `lanes` is the number
// of elements of the only vector if it is partial (kTail).
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
        for (int w = seen.all; w < seen.last; ++w) {  // later rows see more of these
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

// The block's part of the group's first KV head.
template <Format kFormat>
FA_INLINE HeadBlock<kFormat, const std::byte> block_at(const AttentionArgs& args, const Group& g, int block) {
    const auto of_args = HeadBlock<kFormat, const std::byte>::at(args.blocks[block] + args.offset, args.head_dim);
    if (args.rows_per_head == 0) return of_args;
    return HeadBlock<kFormat, const std::byte>::at(of_args.keys + g.row / args.rows_per_head * of_args.bytes(),
                                                   args.head_dim);
}

// Calls run(kv, row, rows) for the rows of each KV head in the group, one head after the other.
template <Format kFormat, class F>
FA_INLINE void for_heads(const AttentionArgs& args, const Group& g, const HeadBlock<kFormat, const std::byte>& first,
                         const F& run) {
    if (args.rows_per_head == 0) return run(first, 0, g.rows);
    for (int row = 0; row < g.rows;) {
        const int head = (g.row + row) / args.rows_per_head - g.row / args.rows_per_head;
        const int left = args.rows_per_head - (g.row + row) % args.rows_per_head;
        const int rows = g.rows - row < left ? g.rows - row : left;
        run(HeadBlock<kFormat, const std::byte>::at(first.keys + head * first.bytes(), args.head_dim), row, rows);
        row += rows;
    }
}

// S = Q K^T of the group and a block. Prefetches the block's values meanwhile.
template <Format kFormat>
void score_block(const AttentionArgs& args, const Group& g, const HeadBlock<kFormat, const std::byte>& first,
                 int vecs) {
    for_heads<kFormat>(args, g, first, [&](const auto& kv, int begin, int rows) {
        for_tiles(rows, [&]<int kRows>(int row) {
            score_rows<kFormat, kRows>(g, kv, args.scale, begin + row, vecs, kv.values);
        });
    });
}

// Merges P V of the block into O of the group. Prefetches the keys of the next block meanwhile.
template <Format kFormat>
void value_block(const AttentionArgs& args, const Group& g, const HeadBlock<kFormat, const std::byte>& first, int block,
                 const std::byte* next) {
    for_heads<kFormat>(args, g, first, [&](const auto& kv, int begin, int rows) {
        const std::byte* ahead = next + (kv.keys - first.keys);
        for_tiles(rows,
                  [&]<int kRows>(int row) { value_rows<kFormat, kRows>(args, g, kv, begin + row, block, ahead); });
    });
}

template <Format kFormat>
void find_maxima(const AttentionArgs& args, const Group& g, int block, int vecs) {
    switch (vecs) {
        case 1: return find_maxima<kFormat, 1>(args, g, block);
        case 2: return find_maxima<kFormat, 2>(args, g, block);
        case 3: return find_maxima<kFormat, 3>(args, g, block);
        default: return find_maxima<kFormat, 4>(args, g, block);
    }
}

template <Format kFormat>
void exponentiate(const AttentionArgs& args, const Group& g, const HeadBlock<kFormat, const std::byte>& kv, int block,
                  int vecs) {
    switch (vecs) {
        case 1: exponentiate<kFormat, 1>(args, g, kv, block); break;
        case 2: exponentiate<kFormat, 2>(args, g, kv, block); break;
        case 3: exponentiate<kFormat, 3>(args, g, kv, block); break;
        default: exponentiate<kFormat, 4>(args, g, kv, block);
    }
    merge_totals<kFormat>(g);
}

FA_INLINE void begin(Group& g) {
    store(g.row_max, broadcast(-kInf));
    store(g.row_total, zero());
}

template <Format kFormat>
void attend(const AttentionArgs& args, Group& g) {
    begin(g);
    read_queries<kFormat>(args, g);
    for (int64_t d = 0; d < g.rows * g.stride; d += kLanes) store(g.sum + d, zero());
    const int ahead_row = g.row + g.rows;
    prefetch_rows(args.q + ahead_row * args.q_stride, args.q_stride, clamp_to(args.q_len - ahead_row, kAttentionRows),
                  args.head_dim);
    // All rows of a group see a part of the same blocks (see `attention`).
    const int seen = visible(args, g.row + g.rows - 1), blocks = (seen + kBlockLen - 1) / kBlockLen;
    for (int block = 0; block < blocks; ++block) {
        const auto kv = block_at<kFormat>(args, g, block);
        const auto next = block + 1 < blocks ? block_at<kFormat>(args, g, block + 1) : kv;
        const int vecs = (clamp_to(seen - block * kBlockLen, kBlockLen) + kLanes - 1) / kLanes;
        score_block<kFormat>(args, g, kv, vecs);
        find_maxima<kFormat>(args, g, block, vecs);
        exponentiate<kFormat>(args, g, kv, block, vecs);
        value_block<kFormat>(args, g, kv, block, next.keys);
    }
    const Vec one = broadcast(1.0f), total = load(g.row_total);
    const Vec divisor = select(equal(total, zero()), one, total);  // a row that sees nothing gives 0, not 0 / 0
    store(g.row_total, kFormat == Format::kFloat32 ? divisor : div(one, divisor));
    for (int r = 0; r < g.rows; ++r) {
        const Vec factor = broadcast(g.row_total[r]);
        float* out = args.out + (g.row + r) * args.out_stride;
        for (int d = 0; d < args.head_dim; d += kLanes) {
            const Vec sum = load(g.sum + r * g.stride + d);
            const Vec o = kFormat == Format::kFloat32 ? div(sum, factor) : mul(sum, factor);
            const int lanes = clamp_to(args.head_dim - d, kLanes);
            if (lanes == kLanes)
                store(out + d, o);
            else
                store_partial(out + d, o, lanes);
        }
    }
}

template <Format kFormat>
void attention(const AttentionArgs& args) {
    Group g = group_in(args);
    const Group fresh = g;
    for (int row = 0; row < args.q_len; row += g.rows) {
        g = fresh;
        g.row = row;
        // Causal groups end at multiples of kAttentionRows, which divides kBlockLen. So their rows see the same blocks,
        // and a part of each.
        const bool positions = args.causal && args.rows_per_head == 0;
        const int most = positions ? kAttentionRows - (args.q_position + row) % kAttentionRows : kAttentionRows;
        g.rows = args.q_len - row < most ? args.q_len - row : most;
        attend<kFormat>(args, g);
    }
}

// One row: writes the scores to probs block by block and updates m and l, then turns the scores into probabilities.
template <Format kFormat>
void probs_row(const AttentionArgs& args, Group g) {
    float* probs = args.out + g.row * args.out_stride;
    begin(g);
    read_queries<kFormat>(args, g);
    const int seen = visible(args, g.row);
    for (int block = 0; block * kBlockLen < seen; ++block) {
        const auto kv = block_at<kFormat>(args, g, block);
        const int count = visible_in_block(args, g.row, block), vecs = (count + kLanes - 1) / kLanes;
        score_block<kFormat>(args, g, kv, vecs);
        find_maxima<kFormat>(args, g, block, vecs);
        for (int i = 0; i < count; i += kLanes)
            store_partial(probs + block * kBlockLen + i, load(g.scores + i), clamp_to(count - i, kLanes));
        exponentiate<kFormat>(args, g, kv, block, vecs);
    }
    const Vec shift = shift_of(broadcast(g.row_max[0]));
    const float row_total = g.row_total[0];
    const Vec total = broadcast(row_total == 0.0f ? 1.0f : row_total);  // a row that sees nothing gives 0, not 0 / 0
    for (int i = 0; i < args.kv_len; i += kLanes) {
        const int lanes = clamp_to(args.kv_len - i, kLanes), lanes_seen = clamp_to(seen - i, kLanes);
        const Vec s = load_partial(probs + i, lanes_seen);
        const Vec x = kFormat == Format::kInt8 ? fma(s, broadcast(g.q_scale[0]), neg(shift)) : sub(s, shift);
        store_partial(probs + i, select(first_lanes(lanes_seen), div(softmax_exp<kFormat>(x), total), zero()), lanes);
    }
}

template <Format kFormat>
void attention_probs(const AttentionArgs& args) {
    Group g = group_in(args);
    g.rows = 1;
    for (g.row = 0; g.row < args.q_len; ++g.row) probs_row<kFormat>(args, g);
}

}  // namespace
}  // namespace fastattn::FASTATTN_TARGET
