// O = O e^(m - m') + P V e^(m_b - m') of some query rows and a block.
//
// A value that a row does not see is not multiplied by its probability 0: 0 * NaN is NaN, and a sum that underflowed to
// -0 would become +0. (Sums of probabilities may include such zeros: no term is negative. Neither case can happen to
// the integers of int8.)
#pragma once
#include "kernels/attention_rows.h"

namespace fastattn::FASTATTN_TARGET {
namespace {

// The positions of a block that the rows of a tile see. Words of values [first, last) have some of them. Every row sees
// all positions of the words [all_begin, all_end) (int8: the rows see some of them).
template <int kRows>
struct SeenValues {
    Range of_row[kRows];
    int first, all_begin, all_end, last;
};

template <Format kFormat, int kRows>
FA_INLINE SeenValues<kRows> seen_values(const AttentionArgs& args, int row, int block) {
    constexpr int kPositions = kGroup<kFormat>;
    SeenValues<kRows> seen;
    if (args.window == 0) {
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r)
            seen.of_row[r] = {0, clamp_to(visible_end(args, row + r) - block * kBlockLen, kBlockLen)};
    } else {
        for (int r = 0; r < kRows; ++r) seen.of_row[r] = visible(args, row + r, block);
    }
    seen.first = seen.of_row[0].begin / kPositions;
    seen.last = (seen.of_row[kRows - 1].end + kPositions - 1) / kPositions;
    seen.all_begin = seen.first;
    seen.all_end = seen.last;
    if constexpr (kFormat != Format::kInt8) {
        seen.all_begin = (seen.of_row[kRows - 1].begin + kPositions - 1) / kPositions;
        seen.all_end = seen.of_row[0].end / kPositions;
        if (seen.all_begin > seen.all_end) seen.all_begin = seen.all_end = seen.last;
    }
    return seen;
}

template <Format kFormat, int kRows, int kVecs>
using ValueSums = typename Kv<kFormat>::Dot::Sum[kRows][kVecs];

// Adds words [begin, end). A row skips the positions that it does not see. kOnlyEnds: all rows begin before these
// words.
template <Format kFormat, class Dot, bool kOnlyEnds, int kRows, int kVecs, class LoadValue>
FA_INLINE void add_seen_words(const int32_t* probs, const SeenValues<kRows>& seen, int begin, int end,
                              const LoadValue& load_value, ValueSums<kFormat, kRows, kVecs>& sum) {
    constexpr int kPositions = kGroup<kFormat>;
    for (int w = begin; w < end; ++w) {
        Words value[kVecs];
#pragma GCC unroll 8
        for (int c = 0; c < kVecs; ++c) value[c] = load_value(w, c);
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r) {
            const int from = kOnlyEnds ? 0 : seen.of_row[r].begin - w * kPositions;
            const int to = seen.of_row[r].end - w * kPositions;
            if (from >= kPositions || to <= 0) continue;
            const Words p = broadcast_word(probs[r * kBlockLen + w]);
            const Words some = broadcast_word((from > 0 ? 0 : 0xffff) | (to < kPositions ? 0 : ~0xffff));
#pragma GCC unroll 8
            for (int c = 0; c < kVecs; ++c)
                sum[r][c] =
                    Dot::step(sum[r][c], p, kFormat == Format::kBfloat16 ? and_words(value[c], some) : value[c]);
        }
    }
}

// Merges the sums of a tile into O, `d` elements from the start of its rows.
template <Format kFormat, int kRows, int kVecs>
FA_INLINE void merge_values(const BlockScores& scores, RunningRows& running, int row, int d,
                            const ValueSums<kFormat, kRows, kVecs>& sum) {
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
        const Vec factor = broadcast(running.factor.of[row + r]), block_factor = broadcast(scores.factor.of[row + r]);
        float* o = running.o + (row + r) * running.stride + d;
#pragma GCC unroll 8
        for (int c = 0; c < kVecs; ++c) {
            Vec block_sum;
            if constexpr (kFormat == Format::kInt8)
                block_sum = to_float(sum[r][c]);
            else if constexpr (Kv<kFormat>::Dot::kTwoChains)
                block_sum = add(sum[r][c], zero());  // tiles may give 0 where this is -0, or the reverse
            else
                block_sum = sum[r][c];
            store(o + c * kLanes, fma(block_sum, block_factor, mul(load(o + c * kLanes), factor)));
        }
    }
}

// Merges P V of the block into O for the rows of a tile: kVecs vectors of elements from `d` on. `lanes` is the number
// of elements of the only vector if it is partial (kTail).
template <Format kFormat, int kRows, int kVecs, bool kTail>
FA_INLINE void value_tile(Workspace& work, const ConstHeadBlock<kFormat>& kv, const SeenValues<kRows>& seen, int row,
                          int d, int lanes, const std::byte* ahead) {
    using Dot = typename Kv<kFormat>::Dot;
    const auto* probs = reinterpret_cast<const int32_t*>(work.block.s + row * kBlockLen);
    const std::byte* values = kv.values + d * kWordBytes;
    const auto load_value = [&](int w, int c) {
        const std::byte* from = values + w * kv.value_stride + c * kLineBytes;
        return kTail ? as_words(load_partial(reinterpret_cast<const float*>(from), lanes)) : load_words(from);
    };
    ValueSums<kFormat, kRows, kVecs> sum;
    clear_sums<Dot, kRows, kVecs>(sum);
    for_chains<Dot>(seen.first, seen.last, sum, [&]<class Chain>(int begin, int end, auto& of_chain) {
        const int all_begin = clamp_to(seen.all_begin, end), all_end = clamp_to(seen.all_end, end);
        const int from = all_begin > begin ? all_begin : begin, to = all_end > from ? all_end : from;
        if constexpr (kFormat != Format::kInt8)
            add_seen_words<kFormat, Chain, false, kRows, kVecs>(probs, seen, begin, from, load_value, of_chain);
        if constexpr (kTail) {
            for (int w = from; w < to; ++w) {
                const Words value = load_value(w, 0);
#pragma GCC unroll 8
                for (int r = 0; r < kRows; ++r)
                    of_chain[r][0] = Chain::step(of_chain[r][0], broadcast_word(probs[r * kBlockLen + w]), value);
            }
        } else {
            const int64_t skipped = from * kv.value_stride;
            multiply<Chain, kRows, kVecs>(probs + from, kBlockLen, values + skipped, kv.value_stride, to - from,
                                          ahead + skipped + d * kWordBytes, of_chain);
        }
        if constexpr (kFormat != Format::kInt8)
            add_seen_words<kFormat, Chain, true, kRows, kVecs>(probs, seen, to, end, load_value, of_chain);
    });
    merge_values<kFormat, kRows, kVecs>(work.block, work.running, row, d, sum);
}

template <Format kFormat, int kRows>
FA_INLINE void value_rows(const AttentionArgs& args, Workspace& work, const ConstHeadBlock<kFormat>& kv, int row,
                          int block, const std::byte* ahead) {
    constexpr int kWide = kRows == 1 ? kBlockVecs : kTileVecs;
    const SeenValues<kRows> seen = seen_values<kFormat, kRows>(args, work.q.first + row, block);
    int d = 0;
    for (; d + kWide * kLanes <= args.head_dim; d += kWide * kLanes)
        value_tile<kFormat, kRows, kWide, false>(work, kv, seen, row, d, kLanes, ahead);
    if constexpr (kWide > 2)
        if (d + 2 * kLanes <= args.head_dim) {
            value_tile<kFormat, kRows, 2, false>(work, kv, seen, row, d, kLanes, ahead);
            d += 2 * kLanes;
        }
    if constexpr (kWide > 1)
        if (d + kLanes <= args.head_dim) {
            value_tile<kFormat, kRows, 1, false>(work, kv, seen, row, d, kLanes, ahead);
            d += kLanes;
        }
    if (d < args.head_dim) value_tile<kFormat, kRows, 1, true>(work, kv, seen, row, d, args.head_dim - d, ahead);
}

// Merges P V of the block into O of all rows. Prefetches the keys of the next block meanwhile.
template <Format kFormat>
void value_block(const AttentionArgs& args, Workspace& work, const ConstHeadBlock<kFormat>& first, int block,
                 const std::byte* next) {
    for_heads<kFormat>(args, work.q, first, [&](const auto& kv, int begin, int rows) {
        const std::byte* ahead = next + (kv.keys - first.keys);
        for_tiles(rows,
                  [&]<int kRows>(int row) { value_rows<kFormat, kRows>(args, work, kv, begin + row, block, ahead); });
    });
}

}  // namespace
}  // namespace fastattn::FASTATTN_TARGET
