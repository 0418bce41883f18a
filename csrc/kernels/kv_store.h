// Stores keys and values of one head in KV blocks, one template for every format.
#pragma once
#include "kernels/kernel_list.h"
#include "kernels/kv_format.h"

namespace fastattn::FASTATTN_TARGET {
namespace {

inline constexpr int kRowWords = kMaxHeadDim;  // room for a row in any format

// Stores `words` words of each of `rows` positions, from position `lane` of the block on.
void store_keys(const int32_t* x, int64_t x_stride, int rows, int words, std::byte* keys, int lane) {
    std::byte* to = keys + lane * kWordBytes;
    if (rows < kLanes) {
        for (int w = 0; w < words; ++w)
            for (int r = 0; r < rows; ++r)
                __builtin_memcpy(to + w * kKeyWordBytes + r * kWordBytes, x + r * x_stride + w, sizeof(int32_t));
        return;
    }
    for (int w = 0; w < words; w += kLanes) {
        const int lanes = clamp_to(words - w, kLanes);
        Words tile[kLanes];
#pragma GCC unroll 16
        for (int r = 0; r < kLanes; ++r) {
            const int32_t* from = x + r * x_stride + w;
            tile[r] =
                lanes == kLanes ? load_words(from) : as_words(load_lanes(reinterpret_cast<const float*>(from), lanes));
        }
        transpose(tile);
        if (lanes == kLanes) {
#pragma GCC unroll 16
            for (int i = 0; i < kLanes; ++i) store_words(to + (w + i) * kKeyWordBytes, tile[i]);
        } else {
            for (int i = 0; i < lanes; ++i) store_words(to + (w + i) * kKeyWordBytes, tile[i]);
        }
    }
}

FA_INLINE void store_lanes(std::byte* to, Words w, int lanes) {
    if (lanes == kLanes)
        store_words(to, w);
    else
        store_partial(reinterpret_cast<float*>(to), as_floats(w), lanes);
}

FA_INLINE void store_values_float32(const float* v, int64_t v_stride, int rows, int n, std::byte* values, int lane) {
    for (int r = 0; r < rows; ++r)
        for (int d = 0; d < n; d += kLanes) {
            const int lanes = clamp_to(n - d, kLanes);
            store_lanes(values + (int64_t{lane + r} * n + d) * kWordBytes,
                        as_words(load_lanes(v + r * v_stride + d, lanes)), lanes);
        }
}

// A word that the rows fill is written at once. A partly filled word is written element by element, because another
// thread may be writing the neighboring positions.
FA_INLINE void store_values_bfloat16(const float* v, int64_t v_stride, int rows, int n, std::byte* values, int lane) {
    for (int r = 0; r < rows;) {
        std::byte* word = values + int64_t{(lane + r) / 2} * n * kWordBytes;
        const float* x = v + r * v_stride;
        if ((lane + r) % 2 == 0 && r + 1 < rows) {
            for (int d = 0; d < n; d += kLanes) {
                const int lanes = clamp_to(n - d, kLanes);
                const Words even = round_bf16(load_lanes(x + d, lanes));
                const Words odd = round_bf16(load_lanes(x + v_stride + d, lanes));
                store_lanes(word + d * kWordBytes, or_words(even, shift_left<16>(odd)), lanes);
            }
            r += 2;
        } else {
            uint16_t bits[kMaxHeadDim];
            for (int d = 0; d < n; d += kLanes) store_bf16(bits + d, load_lanes(x + d, clamp_to(n - d, kLanes)));
            std::byte* element = word + (lane + r) % 2 * sizeof(uint16_t);
            for (int d = 0; d < n; ++d) __builtin_memcpy(element + d * kWordBytes, bits + d, sizeof(uint16_t));
            ++r;
        }
    }
}

FA_INLINE void store_values_int8(const int32_t* bytes, int64_t stride, int rows, int n, std::byte* values, int lane) {
    for (int r = 0; r < rows;) {
        std::byte* word = values + int64_t{(lane + r) / 4} * n * kWordBytes;
        const int32_t* row = bytes + r * stride;
        if ((lane + r) % 4 == 0 && r + 3 < rows) {
            for (int d = 0; d < n; d += 4 * kLanes) {
                Words w[4];
#pragma GCC unroll 4
                for (int j = 0; j < 4; ++j) w[j] = load_words(row + j * stride + d / 4);
                interleave_bytes(w);
#pragma GCC unroll 4
                for (int i = 0; i < 4; ++i)
                    if (const int lanes = clamp_to(n - d - i * kLanes, kLanes); lanes > 0)
                        store_lanes(word + (d + i * kLanes) * kWordBytes, w[i], lanes);
            }
            r += 4;
        } else {
            std::byte* element = word + (lane + r) % 4;
            const auto* from = reinterpret_cast<const std::byte*>(row);
            for (int d = 0; d < n; ++d) element[d * kWordBytes] = from[d];
            ++r;
        }
    }
}

template <Format kFormat>
void kv_store(const KvStoreArgs& args) {
    using Block = HeadBlock<kFormat, std::byte>;
    for (int row = 0; row < args.rows;) {
        const int position = args.position + row;
        const int lane = position % kBlockLen;
        // Take the rows up to the next multiple of kLanes together: they fill whole cache lines of the transposed keys.
        int count = kLanes - lane % kLanes;
        if (count > args.rows - row) count = args.rows - row;
        const int ahead = row + count;
        const int next = args.rows - ahead < kLanes ? args.rows - ahead : kLanes;
        prefetch_rows(args.k + ahead * args.k_stride, args.k_stride, next, args.head_dim);
        prefetch_rows(args.v + ahead * args.v_stride, args.v_stride, next, args.head_dim);
        const Block block = Block::at(args.blocks[position / kBlockLen] + args.offset, args.head_dim);
        const float* k = args.k + row * args.k_stride;
        const float* v = args.v + row * args.v_stride;
        if constexpr (kFormat == Format::kFloat32) {
            store_keys(reinterpret_cast<const int32_t*>(k), args.k_stride, count, block.key_words, block.keys, lane);
            store_values_float32(v, args.v_stride, count, args.head_dim, block.values, lane);
        } else if constexpr (kFormat == Format::kBfloat16) {
            alignas(64) int32_t words[kLanes * kRowWords / 2];
            for (int r = 0; r < count; ++r)
                for (int i = 0; i < 2 * block.key_words; i += kLanes)
                    store_bf16(reinterpret_cast<uint16_t*>(words + r * kRowWords / 2) + i,
                               load_lanes(k + r * args.k_stride + i, clamp_to(args.head_dim - i, kLanes)));
            store_keys(words, kRowWords / 2, count, block.key_words, block.keys, lane);
            store_values_bfloat16(v, args.v_stride, count, args.head_dim, block.values, lane);
        } else {
            alignas(64) int32_t words[kLanes * kRowWords / 4];
            Vec scale = quantize_rows(k, args.k_stride, count, args.head_dim, words, kRowWords / 4).scale;
            store_keys(words, kRowWords / 4, count, block.key_words, block.keys, lane);
            store_partial(reinterpret_cast<float*>(block.key_scales()) + lane, scale, count);
            scale = quantize_rows(v, args.v_stride, count, args.head_dim, words, kRowWords / 4).scale;
            store_values_int8(words, kRowWords / 4, count, args.head_dim, block.values, lane);
            store_partial(reinterpret_cast<float*>(block.value_scales()) + lane, scale, count);
        }
        row += count;
    }
}

}  // namespace
}  // namespace fastattn::FASTATTN_TARGET
