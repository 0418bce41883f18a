// Every query row goes through the blocks it sees in order, and no arithmetic of a row involves another row: which rows
// share a tile, how a prompt was chunked and how long the sequence is by now do not change its bits. Two things make
// that exact, not almost so:
// - A block of which a row sees nothing is not merged into that row.
// - A value beyond what a row sees is not multiplied by its probability 0 either: 0 * NaN is NaN, and a sum that
//   underflowed to -0 would turn into +0. (Sums of probabilities may take such zeros: no term is negative.)
#include "kernels/attention_scores.h"
#include "kernels/kernel_list.h"

namespace fastattn::FASTATTN_TARGET {
namespace {

// State of the rows of a tile, in args.scratch.
struct Tile {
    float* scores;     // [kTileRows, kBlockLen], then probabilities
    float* sum;        // [kTileRows, stride]  values weighted by e^(score - row_max)
    float* block_sum;  // [kTileRows, stride]  the same for one block
    float* row_max;    // [kLanes], one lane a row
    float* row_total;
    float* block_max;
    float* block_total;
    float* old_factor;
    float* block_factor;
    int64_t stride;  // head_dim rounded up to whole vectors
};

FA_INLINE Tile tile_in(const AttentionF32Args& args) {
    constexpr uintptr_t kCacheLine = 64;
    float* p =
        reinterpret_cast<float*>((reinterpret_cast<uintptr_t>(args.scratch) + kCacheLine - 1) & ~(kCacheLine - 1));
    const auto take = [&p](int64_t n) {
        float* taken = p;
        p += n;
        return taken;
    };
    Tile t;
    t.stride = (args.head_dim + kLanes - 1) / kLanes * kLanes;
    t.scores = take(kTileRows * kBlockLen);
    t.sum = take(kTileRows * t.stride);
    t.block_sum = take(kTileRows * t.stride);
    t.row_max = take(kLanes);
    t.row_total = take(kLanes);
    t.block_max = take(kLanes);
    t.block_total = take(kLanes);
    t.old_factor = take(kLanes);
    t.block_factor = take(kLanes);
    return t;
}
static_assert(kAttentionScratch >= kTileRows * (kBlockLen + 2 * kMaxHeadDim) + 6 * kLanes + 16);

// sum[r, :] += sum over j in [begin, end), in order, of probs[r, j] * values[j, :], for kVecs vectors; from 0 if begin
// is 0. `tail` is the number of lanes of the (only) vector when that is not a whole one.
template <int kRows, int kVecs, bool kTail>
FA_INLINE void value_tile(const float* probs, const float* values, int head_dim, int begin, int end, int tail,
                          float* sum, int64_t stride) {
    Vec acc[kRows][kVecs];
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 8
        for (int c = 0; c < kVecs; ++c) acc[r][c] = begin == 0 ? zero() : load(sum + r * stride + c * kLanes);
    for (int j = begin; j < end; ++j) {
        const float* row = values + int64_t{j} * head_dim;
        Vec value[kVecs];
#pragma GCC unroll 8
        for (int c = 0; c < kVecs; ++c) value[c] = kTail ? load_partial(row, tail) : load(row + c * kLanes);
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r) {
            const Vec p = broadcast(probs[r * kBlockLen + j]);
#pragma GCC unroll 8
            for (int c = 0; c < kVecs; ++c) acc[r][c] = fma(p, value[c], acc[r][c]);
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 8
        for (int c = 0; c < kVecs; ++c) store(sum + r * stride + c * kLanes, acc[r][c]);
}

template <int kRows>
FA_INLINE void value_block(const float* probs, const float* values, int head_dim, int begin, int end, float* sum,
                           int64_t stride) {
    constexpr int kWide = kRows == 1 ? kBlockVecs : kTileVecs;
    int d = 0;
    for (; d + kWide * kLanes <= head_dim; d += kWide * kLanes)
        value_tile<kRows, kWide, false>(probs, values + d, head_dim, begin, end, kLanes, sum + d, stride);
    if constexpr (kWide > 2)
        if (d + 2 * kLanes <= head_dim) {
            value_tile<kRows, 2, false>(probs, values + d, head_dim, begin, end, kLanes, sum + d, stride);
            d += 2 * kLanes;
        }
    if (d + kLanes <= head_dim) {
        value_tile<kRows, 1, false>(probs, values + d, head_dim, begin, end, kLanes, sum + d, stride);
        d += kLanes;
    }
    if (d < head_dim)
        value_tile<kRows, 1, true>(probs, values + d, head_dim, begin, end, head_dim - d, sum + d, stride);
}

// Softmax of a block in two passes over the rows of a tile. One row's maximum, exponentials and sum are a chain of some
// 130 cycles; in two passes the rows' chains overlap.

FA_INLINE void mask_and_find_max(const Tile& t, int r, const float* mask, int count) {
    float* scores = t.scores + r * kBlockLen;
    Vec s[kBlockVecs];
#pragma GCC unroll 4
    for (int c = 0; c < kBlockVecs; ++c) s[c] = load(scores + c * kLanes);
    if (mask || count < kBlockLen) {
        mask_row(s, mask, count);
#pragma GCC unroll 4
        for (int c = 0; c < kBlockVecs; ++c) store(scores + c * kLanes, s[c]);
    }
    t.block_max[r] = reduce_max(max(max(s[0], s[1]), max(s[2], s[3])));
}

// Scores of one row become e^(score - block_max) in place.
FA_INLINE void exponentiate(const Tile& t, int r) {
    float* scores = t.scores + r * kBlockLen;
    // With nothing but -inf the shift is 0, so that the probabilities are 0 and not NaN. (A NaN score may hide from the
    // maximum, not from the sum.)
    const Vec highest = broadcast(t.block_max[r]);
    const Vec shift = select(equal(highest, broadcast(-kInf)), zero(), highest);
    Vec s[kBlockVecs];
#pragma GCC unroll 4
    for (int c = 0; c < kBlockVecs; ++c) s[c] = exp(sub(load(scores + c * kLanes), shift));
#pragma GCC unroll 4
    for (int c = 0; c < kBlockVecs; ++c) store(scores + c * kLanes, s[c]);
    t.block_total[r] = reduce_add(add(add(s[0], s[1]), add(s[2], s[3])));
}

// Merges the block into the maxima and totals of all rows, one lane a row, and leaves the two factors for the values.
// For a row that sees nothing of the block (maximum -inf, total 0) this changes nothing.
FA_INLINE void merge_totals(const Tile& t) {
    const Vec old_max = load(t.row_max), block_max = load(t.block_max);
    const Vec new_max = max(old_max, block_max);
    const Vec shift = select(equal(new_max, broadcast(-kInf)), zero(), new_max);
    const Vec old_factor = exp(sub(old_max, shift)), block_factor = exp(sub(block_max, shift));
    store(t.row_max, new_max);
    store(t.row_total, fma(load(t.block_total), block_factor, mul(load(t.row_total), old_factor)));
    store(t.old_factor, old_factor);
    store(t.block_factor, block_factor);
}

FA_INLINE void merge_values(const Tile& t, int r) {
    const Vec old_factor = broadcast(t.old_factor[r]), block_factor = broadcast(t.block_factor[r]);
    float* sum = t.sum + r * t.stride;
    const float* block_sum = t.block_sum + r * t.stride;
    for (int d = 0; d < t.stride; d += kLanes)
        store(sum + d, fma(load(block_sum + d), block_factor, mul(load(sum + d), old_factor)));
}

template <int kRows>
FA_INLINE void attend_block(const AttentionF32Args& args, const Tile& t, int row, int block) {
    const float* keys = args.blocks[block] + args.k_offset;
    const float* values = args.blocks[block] + args.v_offset;
    // Causal rows of a tile see more and more of a block: the first one sees what all see.
    const int seen_by_all = visible_in_block(args, row, block);
    const int seen_by_last = visible_in_block(args, row + kRows - 1, block);
    score_block<kRows>(args.q + row * args.q_stride, args.q_stride, keys, args.head_dim, args.scale, seen_by_last,
                       t.scores);
    for (int r = 0; r < kRows; ++r) {
        const int count = visible_in_block(args, row + r, block);
        const float* mask = args.mask ? args.mask + (row + r) * args.mask_stride + block * kBlockLen : nullptr;
        mask_and_find_max(t, r, mask, count);
    }
    for (int r = 0; r < kRows; ++r) exponentiate(t, r);
    value_block<kRows>(t.scores, values, args.head_dim, 0, seen_by_all, t.block_sum, t.stride);
    merge_totals(t);
    for (int r = 0; r < kRows; ++r) {
        const int count = visible_in_block(args, row + r, block);
        if (count == 0) continue;
        if (count > seen_by_all)
            value_block<1>(t.scores + r * kBlockLen, values, args.head_dim, seen_by_all, count,
                           t.block_sum + r * t.stride, t.stride);
        merge_values(t, r);
    }
}

template <int kRows>
__attribute__((noinline)) void attend_tile(const AttentionF32Args& args, const Tile& t, int row) {
    for (int d = 0; d < kRows * t.stride; d += kLanes) store(t.sum + d, zero());
    store(t.row_max, broadcast(-kInf));
    store(t.block_max, broadcast(-kInf));
    store(t.row_total, zero());
    store(t.block_total, zero());
    const int ahead = row + kRows;
    prefetch_rows(args.q + ahead * args.q_stride, args.q_stride, clamp_to(args.q_len - ahead, kTileRows),
                  args.head_dim);
    const int blocks = visible_blocks(args, row + kRows - 1);
    for (int block = 0; block < blocks; ++block) attend_block<kRows>(args, t, row, block);
    for (int r = 0; r < kRows; ++r) {
        const bool sees_any = t.row_total[r] != 0.0f;
        const Vec total = broadcast(t.row_total[r]);
        float* out = args.out + (row + r) * args.out_stride;
        for (int d = 0; d < args.head_dim; d += kLanes) {
            const Vec o = sees_any ? div(load(t.sum + r * t.stride + d), total) : zero();
            store_partial(out + d, o, clamp_to(args.head_dim - d, kLanes));
        }
    }
}

}  // namespace

void attention_f32(const AttentionF32Args& args) {
    const Tile t = tile_in(args);
    int row = 0;
    for (; row + kTileRows <= args.q_len; row += kTileRows) attend_tile<kTileRows>(args, t, row);
    switch (args.q_len - row) {
        case 1: return attend_tile<1>(args, t, row);
        case 2: return attend_tile<2>(args, t, row);
        case 3: return attend_tile<3>(args, t, row);
        case 4: return attend_tile<4>(args, t, row);
        case 5: return attend_tile<5>(args, t, row);
        default: return;
    }
}

}  // namespace fastattn::FASTATTN_TARGET
