// Sixteen query rows and a block of 64 positions on tensor cores, by one warp. Prefill and decode share it, so that
// both give the same bits. Q (times scale and log2 e), K, V and P are rounded to T; sums are float32. A lane has rows g
// and g + 8, where g = lane / 4, and of each eight columns the two from 2 (lane % 4) on.
#pragma once
#include "cuda/kernels/attention.h"

namespace fastattn::cuda {

inline constexpr float kLog2E = 0x1.715476p+0f;
inline constexpr int kWarpRows = 16;
inline constexpr int kScoreTiles = kBlockLen / 8;

// kDim: head_dim rounded up to 32, 64, 128 or 256. Rows in shared memory are padded, so that eight of them start in
// different banks.
template <class T, int kDim>
struct MmaShape {
    static constexpr int kPitch = kDim + 8;
    static constexpr int kChunk = kDim < 64 ? kDim : 64;  // elements of P V whose sums are in registers at a time
    static constexpr int64_t bytes(int q_rows) { return (q_rows + 2 * kBlockLen) * kPitch * int64_t{2}; }
};

// Copies keys or values of a block to shared memory [kBlockLen, kPitch]; zero after `rows` and head_dim.
template <class T, int kDim, int kThreads>
FA_DEVICE void copy_block(uint16_t* tile, const std::byte* from, int rows, int row_width) {
    constexpr int kUnits = kDim / 8;
#pragma unroll 4
    for (int unit = thread_id(); unit < kBlockLen * kUnits; unit += kThreads) {
        const int r = unit / kUnits, i = unit % kUnits * 8;
        uint16_t* to = tile + r * MmaShape<T, kDim>::kPitch + i;
        if (r < rows && i < row_width)
            copy_async_16(to, reinterpret_cast<const uint16_t*>(from) + r * row_width + i);
        else
            store_16(to, {0, 0, 0, 0});
    }
    copy_async_commit();
}

// Elements d and d + 1 of a query row; 0 after head_dim.
template <class T>
FA_DEVICE uint32_t query_pair(const float* q, int d, int head_dim, float factor) {
    return round_pair<T>(d < head_dim ? q[d] * factor : 0.0f, d + 1 < head_dim ? q[d + 1] * factor : 0.0f);
}

// S = Q K^T of the warp's rows, q [16, kPitch], and the positions of a block, keys [kBlockLen, kPitch].
template <class T, int kDim>
FA_DEVICE void score_block(const uint16_t* q, const uint16_t* keys, int head_dim, float (&score)[kScoreTiles][4]) {
    constexpr int kPitch = MmaShape<T, kDim>::kPitch;
    const uint16_t* q_row = q + lane() % 16 * kPitch + lane() / 16 * 8;
    const uint16_t* key_row = keys + (lane() % 8 + lane() / 16 * 8) * kPitch + lane() / 8 % 2 * 8;
#pragma unroll
    for (int n = 0; n < kScoreTiles; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) score[n][i] = 0.0f;
#pragma unroll
    for (int k = 0; k < kDim; k += 16) {
        if (k >= head_dim) break;
        uint32_t a[4];
        load_matrices(a, q_row + k);
#pragma unroll
        for (int n = 0; n < kScoreTiles; n += 2) {
            uint32_t b[4];
            load_matrices(b, key_row + 8 * n * kPitch + k);
            mma_16x8x16<T>(score[n], a, b[0], b[1]);
            mma_16x8x16<T>(score[n + 1], a, b[2], b[3]);
        }
    }
}

// What a row sees of a block, and the biases from the block's first position on, or null.
struct SeenBlock {
    Range seen;
    const float* bias;
};

// Replaces S by P, as fragments of a matrix [16, 64], and stores the maxima of S and the sums of P. rows: those of rows
// g and g + 8. S has units of log2(e).
template <class T>
FA_DEVICE void probabilities(float (&score)[kScoreTiles][4], const SeenBlock (&rows)[2], float (&highest)[2],
                             float (&total)[2], uint32_t (&probs)[kBlockLen / 16][4]) {
#pragma unroll
    for (int row = 0; row < 2; ++row) {
        highest[row] = -kInf;
        total[row] = 0.0f;
#pragma unroll
        for (int n = 0; n < kScoreTiles; ++n)
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                float& s = score[n][2 * row + i];
                const int column = 8 * n + lane() % 4 * 2 + i;
                const bool sees = rows[row].seen.has(column);
                if (sees && rows[row].bias != nullptr) s = math::fma(rows[row].bias[column], kLog2E, s);
                s = sees ? s : -kInf;
                highest[row] = math::max(highest[row], s);
            }
        highest[row] = math::max(highest[row], shuffle_xor(highest[row], 1));
        highest[row] = math::max(highest[row], shuffle_xor(highest[row], 2));
        const float shift = shift_of(highest[row]);
#pragma unroll
        for (int n = 0; n < kScoreTiles; ++n)
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                float& p = score[n][2 * row + i];
                p = exp2_fast(p - shift);
                total[row] += p;
            }
        total[row] += shuffle_xor(total[row], 1);
        total[row] += shuffle_xor(total[row], 2);
    }
#pragma unroll
    for (int k = 0; k < kBlockLen / 16; ++k)
#pragma unroll
        for (int i = 0; i < 4; ++i)
            probs[k][i] = round_pair<T>(score[2 * k + i / 2][i % 2 * 2], score[2 * k + i / 2][i % 2 * 2 + 1]);
}

// P V of the block: calls sink(n, part) for elements 8 n to 8 n + 7 of head_dim, with the lane's fragment `part`.
template <class T, int kDim, class Sink>
FA_DEVICE void weigh_values(const uint32_t (&probs)[kBlockLen / 16][4], const uint16_t* values, int head_dim,
                            const Sink& sink) {
    constexpr int kPitch = MmaShape<T, kDim>::kPitch, kChunk = MmaShape<T, kDim>::kChunk;
    const uint16_t* value_row = values + lane() % 16 * kPitch + lane() / 16 * 8;
#pragma unroll
    for (int chunk = 0; chunk < kDim; chunk += kChunk) {
        if (chunk >= head_dim) break;
        sync_warp();  // ldmatrix and mma need all lanes together; the caller or the last sink may have separated them
        float part[kChunk / 8][4] = {};
#pragma unroll
        for (int k = 0; k < kBlockLen / 16; ++k)
#pragma unroll
            for (int n = 0; n < kChunk / 8; n += 2) {
                uint32_t b[4];
                load_matrices_transposed(b, value_row + 16 * k * kPitch + chunk + 8 * n);
                mma_16x8x16<T>(part[n], probs[k], b[0], b[1]);
                mma_16x8x16<T>(part[n + 1], probs[k], b[2], b[3]);
            }
#pragma unroll
        for (int n = 0; n < kChunk / 8; ++n) sink(chunk / 8 + n, part[n]);
    }
}

}  // namespace fastattn::cuda
