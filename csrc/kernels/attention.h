// Softmax attention over KV blocks, one template for every format (docs/design/0006-kv-dtypes.md).
//
// Every query row goes through the blocks it sees in order, and no arithmetic of a row involves another row: which rows
// go together, how a prompt was chunked and how long the sequence is by now do not change its bits. Two things make
// that exact, not almost so:
// - A block of which a row sees nothing is not merged into that row.
// - A value beyond what a row sees is not multiplied by its probability 0 either: 0 * NaN is NaN, and a sum that
//   underflowed to -0 would turn into +0. (Sums of probabilities may take such zeros: no term is negative. Neither can
//   happen to the integers of int8.)
#pragma once
#include "kernels/attention_tiles.h"

namespace fastattn::FASTATTN_TARGET {
namespace {

template <int kVecs, class F>
FA_INLINE auto in_pairs(const F& combine, const auto (&x)[kVecs]) {
    if constexpr (kVecs == 1) return x[0];
    if constexpr (kVecs == 2) return combine(x[0], x[1]);
    if constexpr (kVecs == 3) return combine(combine(x[0], x[1]), x[2]);
    if constexpr (kVecs == 4) return combine(combine(x[0], x[1]), combine(x[2], x[3]));
}

// The block's maximum of each row, in the exponent's units. Scores beyond what a row sees become -inf.
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

// With nothing but -inf the shift is 0, so that the probabilities are 0 and not NaN. (A NaN score may hide from the
// maximum, not from the sum.)
FA_INLINE Vec shift_of(Vec highest) {
    return select(equal(highest, broadcast(-kInf)), zero(), highest);
}

// Scores become e^(score - block_max), as words; and their sums.
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
            if (!whole) {  // what a row does not see may have any scale
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

// Merges the block into the maxima and totals of all rows, and leaves the two factors for the values. For a row that
// has only -inf in the block (total 0) this changes nothing.
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

// The part of the group's first head.
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

// Scores of the group with a block. Meanwhile its values come into the cache.
template <Format kFormat>
void score_block(const AttentionArgs& args, const Group& g, const HeadBlock<kFormat, const std::byte>& first,
                 int vecs) {
    for_heads<kFormat>(args, g, first, [&](const auto& kv, int begin, int rows) {
        for_tiles(rows, [&]<int kRows>(int row) {
            score_rows<kFormat, kRows>(g, kv, args.scale, begin + row, vecs, kv.values);
        });
    });
}

// Merges the block's values into the sums of the group. Meanwhile the keys of the next block come into the cache.
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
    // All rows of a group see something of the same blocks (see attention below).
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
    const Vec divisor = select(equal(total, zero()), one, total);  // sees nothing: 0, not 0 / 0
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
        // Causal groups end at multiples of their length, which divides that of a block: so their rows see the same
        // blocks, and something of each.
        const bool positions = args.causal && args.rows_per_head == 0;
        const int most = positions ? kAttentionRows - (args.q_position + row) % kAttentionRows : kAttentionRows;
        g.rows = args.q_len - row < most ? args.q_len - row : most;
        attend<kFormat>(args, g);
    }
}

// One row: the scores into probs, block by block, with the maximum and total of `attention`; then one pass that turns
// them into probabilities.
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
    const Vec total = broadcast(row_total == 0.0f ? 1.0f : row_total);  // sees nothing: 0, not 0 / 0
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
