// Stores keys and values of a step's tokens in the pages of their sequences, rounded to the pages' type.
#include "cuda/kernels/attention.h"

namespace fastattn::cuda {
namespace {

constexpr int kStoreThreads = 128;
constexpr int kUnit = 8;  // elements of a key and of its value per thread: 16 bytes of 16-bit types

// Elements d to d + 7 of a head's row [head_dim], 0 after its end.
template <bool kFour>
FA_DEVICE void load_unit(const float* row, int d, int head_dim, float (&x)[kUnit]) {
    if constexpr (kFour) {
        const Four low = load_four(row + d), high = d + 4 < head_dim ? load_four(row + d + 4) : Four{};
#pragma unroll
        for (int j = 0; j < 4; ++j) x[j] = low.x[j], x[4 + j] = high.x[j];
    } else {
#pragma unroll
        for (int j = 0; j < kUnit; ++j) x[j] = d + j < head_dim ? row[d + j] : 0.0f;
    }
}

FA_DEVICE void store_unit(std::byte* rows, int64_t element, Type type, const float (&x)[kUnit]) {
    if (type == Type::kFloat32) {
        float* to = reinterpret_cast<float*>(rows) + element;
        store_16(to, {word_of(x[0]), word_of(x[1]), word_of(x[2]), word_of(x[3])});
        store_16(to + 4, {word_of(x[4]), word_of(x[5]), word_of(x[6]), word_of(x[7])});
    } else {
        store_16(reinterpret_cast<uint16_t*>(rows) + element,
                 {round_pair_to(type, x[0], x[1]), round_pair_to(type, x[2], x[3]), round_pair_to(type, x[4], x[5]),
                  round_pair_to(type, x[6], x[7])});
    }
}

template <bool kFour>
FA_KERNEL(kStoreThreads)
kv_store(const KvStoreArgs args) {
    const KvPages& pages = args.pages;
    const int token = block_x(), row_units = static_cast<int>(row_elements(pages.head_dim)) / kUnit;
    const int unit = block_y() * kStoreThreads + thread_id();
    if (token >= count_of(args.tokens) || unit >= pages.n_kv_head * row_units) return;
    const int s = sequence_of(args.sequences.cu_seqlens, count_of(args.sequences.rows), token);
    const Sequence sequence = sequence_at(args.sequences, pages, s);
    const int position = sequence.start + token - sequence.token_begin;
    const int head = unit / row_units, d = unit % row_units * kUnit;
    std::byte* keys = const_cast<std::byte*>(keys_at(pages, sequence, head, position / kBlockLen));
    const int64_t row = row_elements(pages.head_dim), element = position % kBlockLen * row + d;
    float x[kUnit];
    load_unit<kFour>(args.k + token * args.k_stride + head * pages.head_dim, d, pages.head_dim, x);
    store_unit(keys, element, pages.type, x);
    load_unit<kFour>(args.v + token * args.v_stride + head * pages.head_dim, d, pages.head_dim, x);
    store_unit(keys, element + kBlockLen * row, pages.type, x);
}

}  // namespace

void launch_kv_store(const KvStoreArgs& args, Stream stream) {
    const bool fours = args.pages.head_dim % 4 == 0 && by_four(args.k, args.k_stride) && by_four(args.v, args.v_stride);
    const int64_t units = args.pages.n_kv_head * row_elements(args.pages.head_dim) / kUnit;
    launch("kv_store", fours ? kv_store<true> : kv_store<false>, {args.tokens.most, divide_up(units, kStoreThreads)},
           kStoreThreads, /*shared_bytes=*/0, args, stream);
}

}  // namespace fastattn::cuda
