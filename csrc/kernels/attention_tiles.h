// Q K^T and P V on AMX tiles, for rows that are positions. Rows beyond q.count are computed from whatever is in memory,
// and the results are never read.
#pragma once
#include "kernels/attention_softmax.h"
#include "kernels/attention_values.h"
#if FASTATTN_HAS_TILES
#include "simd/amx.h"
#endif

namespace fastattn::FASTATTN_TARGET {
namespace {

#if FASTATTN_HAS_TILES

constexpr int kLeastTileRows = 4;  // with fewer rows, vectors are as fast
constexpr int64_t kScoreBytes = kBlockLen * sizeof(float);

template <Format kFormat>
FA_INLINE bool rows_fit_tiles(const AttentionArgs& args, const QueryRows& q) {
    return kFormat != Format::kFloat32 && args.rows_per_head == 0 && q.count >= kLeastTileRows;
}

// S with all positions of a block. int8: times the scale of the key.
template <Format kFormat>
FA_INLINE void score_on_tiles(const QueryRows& q, BlockScores& scores, const ConstHeadBlock<kFormat>& kv) {
    FA_TILE_READY();
    FA_TILE_CLEAR_SUMS();
    for (int w = 0; w < kv.key_words; w += kTileWords) {
        const std::byte* keys = kv.keys + w * kKeyWordBytes;
        FA_TILE_LOAD(4, q.words + w, q.stride * kWordBytes);
        FA_TILE_LOAD(5, keys, kKeyWordBytes);
        FA_TILE_MULTIPLY_SIGNED(kFormat, 0, 4, 5);
        FA_TILE_LOAD(6, keys + kLineBytes, kKeyWordBytes);
        FA_TILE_MULTIPLY_SIGNED(kFormat, 1, 4, 6);
        FA_TILE_LOAD(7, keys + 2 * kLineBytes, kKeyWordBytes);
        FA_TILE_MULTIPLY_SIGNED(kFormat, 2, 4, 7);
        FA_TILE_LOAD(5, keys + 3 * kLineBytes, kKeyWordBytes);
        FA_TILE_MULTIPLY_SIGNED(kFormat, 3, 4, 5);
    }
    FA_TILE_STORE(0, scores.s, kScoreBytes);
    FA_TILE_STORE(1, scores.s + kLanes, kScoreBytes);
    FA_TILE_STORE(2, scores.s + 2 * kLanes, kScoreBytes);
    FA_TILE_STORE(3, scores.s + 3 * kLanes, kScoreBytes);
    if constexpr (kFormat == Format::kInt8) {
        Vec scale[kBlockVecs];
        for (int c = 0; c < kBlockVecs; ++c)
            scale[c] = load(reinterpret_cast<const float*>(kv.key_scales()) + c * kLanes);
        for (int r = 0; r < q.count; ++r)
#pragma GCC unroll 4
            for (int c = 0; c < kBlockVecs; ++c) {
                float* s = scores.s + r * kBlockLen + c * kLanes;
                store(s, mul(to_float(load_words(s)), scale[c]));
            }
    }
}

// P V of `tiles` tiles of elements (at most four) from `d` on, over words [0, words), to `sums` [16, 64].
template <Format kFormat>
FA_INLINE void multiply_values(const BlockScores& scores, const ConstHeadBlock<kFormat>& kv, int d, int tiles,
                               int words, float* sums) {
    FA_TILE_READY();
    FA_TILE_CLEAR_SUMS();
    for (int w = 0; w < words; w += kTileWords) {
        const std::byte* values = kv.values + w * kv.value_stride + d * kWordBytes;
        FA_TILE_LOAD(4, scores.s + w, kScoreBytes);
        FA_TILE_LOAD(5, values, kv.value_stride);
        FA_TILE_MULTIPLY_SIGNED(kFormat, 0, 4, 5);
        if (tiles < 2) continue;
        FA_TILE_LOAD(6, values + kLineBytes, kv.value_stride);
        FA_TILE_MULTIPLY_SIGNED(kFormat, 1, 4, 6);
        if (tiles < 3) continue;
        FA_TILE_LOAD(7, values + 2 * kLineBytes, kv.value_stride);
        FA_TILE_MULTIPLY_SIGNED(kFormat, 2, 4, 7);
        if (tiles < 4) continue;
        FA_TILE_LOAD(5, values + 3 * kLineBytes, kv.value_stride);
        FA_TILE_MULTIPLY_SIGNED(kFormat, 3, 4, 5);
    }
    FA_TILE_STORE(0, sums, kScoreBytes);
    FA_TILE_STORE(1, sums + kLanes, kScoreBytes);
    FA_TILE_STORE(2, sums + 2 * kLanes, kScoreBytes);
    FA_TILE_STORE(3, sums + 3 * kLanes, kScoreBytes);
}

// P V of a block, for all rows.
template <Format kFormat>
FA_INLINE void multiply_values(const AttentionArgs& args, Workspace& work, const ConstHeadBlock<kFormat>& kv,
                               int block) {
    const int end = visible(args, work.q.first + work.q.count - 1, block).end;
    for (int d = 0; d < args.head_dim; d += kSumElements)
        multiply_values<kFormat>(work.block, kv, d, (args.head_dim - d) / kLanes,
                                 (end + kGroup<kFormat> - 1) / kGroup<kFormat>, work.sums[d / kSumElements]);
}

// True if no sum of the first `vecs` vectors of each row is NaN or infinite.
FA_INLINE bool all_finite(const float* sums, int rows, int vecs) {
    Vec product[kBlockVecs] = {zero(), zero(), zero(), zero()};  // times 0
    for (int r = 0; r < rows; ++r, sums += kSumElements)
#pragma GCC unroll 4
        for (int c = 0; c < kBlockVecs; ++c)
            if (c < vecs) product[c] = fma(load(sums + c * kLanes), zero(), product[c]);
    return !any(is_nan(add(add(product[0], product[1]), add(product[2], product[3]))));
}

// O of the first `vecs` vectors of each row, from `d` on.
template <Format kFormat>
FA_INLINE void merge_sums_of_tiles(Workspace& work, const float* sums, int d, int vecs) {
    float* o = work.running.o + d;
    for (int r = 0; r < work.q.count; ++r, sums += kSumElements, o += work.running.stride) {
        const Vec factor = broadcast(work.running.factor.of[r]), block_factor = broadcast(work.block.factor.of[r]);
#pragma GCC unroll 4
        for (int c = 0; c < kBlockVecs; ++c) {
            if (c >= vecs) continue;
            Vec sum;
            if constexpr (kFormat == Format::kInt8)
                sum = to_float(load_words(sums + c * kLanes));
            else
                sum = add(load(sums + c * kLanes), zero());
            store(o + c * kLanes, fma(sum, block_factor, mul(load(o + c * kLanes), factor)));
        }
    }
}

// Merges P V of the block into O. P is 0 at positions that a row does not see, and 0 times a number changes nothing.
// But 0 times NaN or infinity is NaN: returns false then, with O unchanged.
template <Format kFormat>
FA_INLINE bool merge_tiles(const AttentionArgs& args, Workspace& work) {
    const auto vecs_from = [&](int d) { return clamp_to((args.head_dim - d) / kLanes, kBlockVecs); };
    if constexpr (kFormat != Format::kInt8)
        for (int d = 0; d < args.head_dim; d += kSumElements)
            if (!all_finite(work.sums[d / kSumElements], work.q.count, vecs_from(d))) return false;
    for (int d = 0; d < args.head_dim; d += kSumElements)
        merge_sums_of_tiles<kFormat>(work, work.sums[d / kSumElements], d, vecs_from(d));
    return true;
}

#endif

// S of all rows.
template <Format kFormat>
FA_INLINE void scores_of_target(const AttentionArgs& args, Workspace& work, const ConstHeadBlock<kFormat>& kv,
                                int vecs) {
#if FASTATTN_HAS_TILES
    if constexpr (kFormat != Format::kFloat32)
        if (rows_fit_tiles<kFormat>(args, work.q) && kv.key_words % kTileWords == 0)
            return score_on_tiles<kFormat>(work.q, work.block, kv);
#endif
    score_block<kFormat>(args, work.q, work.block, kv, vecs);
}

// Merges P V of the block into O of all rows.
template <Format kFormat>
FA_INLINE void values_of_target(const AttentionArgs& args, Workspace& work, const ConstHeadBlock<kFormat>& kv,
                                int block, const std::byte* next) {
#if FASTATTN_HAS_TILES
    if constexpr (kFormat != Format::kFloat32)
        if (rows_fit_tiles<kFormat>(args, work.q) && args.head_dim % kLanes == 0) {
            multiply_values<kFormat>(args, work, kv, block);
            if (merge_tiles<kFormat>(args, work)) return;
        }
#endif
    value_block<kFormat>(args, work, kv, block, next);
}

}  // namespace
}  // namespace fastattn::FASTATTN_TARGET
