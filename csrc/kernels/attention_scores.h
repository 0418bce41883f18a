// What attention_f32 and attention_probs_f32 share: the scores of up to kTileRows query rows with one KV block.
#pragma once
#include "kernels/kernels.h"
#include "kernels/math.h"
#include "simd/vec.h"

namespace fastattn::FASTATTN_TARGET {

inline constexpr int kBlockVecs = kBlockLen / kLanes;

FA_INLINE int clamp_to(int x, int high) {
    return x < 0 ? 0 : x < high ? x : high;
}

// Positions of block `block` that query row `row` sees.
FA_INLINE int visible_in_block(const AttentionF32Args& args, int row, int block) {
    const int own = args.q_position + row + 1;
    const int visible = args.causal && own < args.kv_len ? own : args.kv_len;
    return clamp_to(visible - block * kBlockLen, kBlockLen);
}

// Blocks of which query row `row` sees anything.
FA_INLINE int visible_blocks(const AttentionF32Args& args, int row) {
    const int own = args.q_position + row + 1;
    const int visible = args.causal && own < args.kv_len ? own : args.kv_len;
    return (visible + kBlockLen - 1) / kBlockLen;
}

// scores[r, j] = scale * sum over d, in order, of q[r, d] * keys[d, j], for the positions of kVecs vectors
template <int kRows, int kVecs>
FA_INLINE void score_tile(const float* q,  // [kRows, head_dim]
                          int64_t q_stride,
                          const float* keys,  // [head_dim, kBlockLen]
                          int head_dim, float scale,
                          float* scores) {  // [kRows, kBlockLen]
    Vec sum[kRows][kVecs];
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 8
        for (int c = 0; c < kVecs; ++c) sum[r][c] = zero();
    for (int d = 0; d < head_dim; ++d) {
        Vec key[kVecs];
#pragma GCC unroll 8
        for (int c = 0; c < kVecs; ++c) key[c] = load(keys + d * kBlockLen + c * kLanes);
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r) {
            const Vec a = broadcast(q[r * q_stride + d]);
#pragma GCC unroll 8
            for (int c = 0; c < kVecs; ++c) sum[r][c] = fma(a, key[c], sum[r][c]);
        }
    }
    const Vec factor = broadcast(scale);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 8
        for (int c = 0; c < kVecs; ++c) store(scores + r * kBlockLen + c * kLanes, mul(sum[r][c], factor));
}

// Scores of the first `count` positions of a block (and of the rest of their last vector; later lanes stay as they
// are).
template <int kRows>
FA_INLINE void score_block(const float* q, int64_t q_stride, const float* keys, int head_dim, float scale, int count,
                           float* scores) {
    const int vecs = (count + kLanes - 1) / kLanes;
    if constexpr (kRows == 1 || kTileVecs == kBlockVecs) {
        if (vecs > 2) return score_tile<kRows, 4>(q, q_stride, keys, head_dim, scale, scores);
        if (vecs == 2) return score_tile<kRows, 2>(q, q_stride, keys, head_dim, scale, scores);
        if (vecs == 1) return score_tile<kRows, 1>(q, q_stride, keys, head_dim, scale, scores);
    } else {
        for (int c = 0; c < vecs; ++c)
            score_tile<kRows, 1>(q, q_stride, keys + c * kLanes, head_dim, scale, scores + c * kLanes);
    }
}

// One row's scores of a block: mask added, and -inf from position `count` on.
FA_INLINE void mask_row(Vec (&s)[kBlockVecs], const float* mask, int count) {
#pragma GCC unroll 4
    for (int c = 0; c < kBlockVecs; ++c) {
        const int lanes = clamp_to(count - c * kLanes, kLanes);
        if (mask) s[c] = add(s[c], load_partial(mask + c * kLanes, lanes));
        s[c] = select(first_lanes(lanes), s[c], broadcast(-kInf));
    }
}

}  // namespace fastattn::FASTATTN_TARGET
