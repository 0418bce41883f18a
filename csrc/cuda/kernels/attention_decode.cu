// Attention of one query row per sequence. Every block of positions is reduced independently, across the device. A
// second kernel merges the blocks in order. The split is by position, so it is the same for every batch.
#include "cuda/kernels/attention_mma.h"

namespace fastattn::cuda {
namespace {

// Copies the queries of up to `heads` heads from `head` on to q [kWarpRows, kPitch]; zero after them.
template <class T, int kDim>
FA_DEVICE void copy_heads(uint16_t* q, const AttentionArgs& args, int row, int head, int heads) {
    const int head_dim = args.pages.head_dim;
    for (int i = lane(); i < kWarpRows * kDim / 2; i += kWarp) {
        const int r = i / (kDim / 2), d = i % (kDim / 2) * 2;
        uint32_t pair = 0;
        if (r < heads)
            pair =
                query_pair<T>(args.q + row * args.q_stride + (head + r) * head_dim, d, head_dim, args.scale * kLog2E);
        *reinterpret_cast<uint32_t*>(q + r * MmaShape<T, kDim>::kPitch + d) = pair;
    }
}

// One warp per block. The query heads of a KV head are the rows of a tile, sixteen at a time.
template <class T, int kDim>
FA_KERNEL(kWarp)
decode_block(const AttentionArgs args) {
    constexpr int kPitch = MmaShape<T, kDim>::kPitch;
    const KvPages& pages = args.pages;
    const int s = block_x() / pages.n_kv_head, kv_head = block_x() % pages.n_kv_head, block = block_y();
    if (s >= count_of(args.sequences.rows) || args.q_begin[s] == args.q_begin[s + 1]) return;
    const Sequence sequence = sequence_at(args.sequences, pages, s);
    const int row = args.q_begin[s];
    const Query query = query_of(args, sequence, row);
    const Range seen = query.seen.of_block(block);
    if (seen.empty()) return;
    const int head_dim = pages.head_dim, group = args.n_head / pages.n_kv_head;
    const int row_width = static_cast<int>(row_elements(head_dim)), rows = sequence.kv_len - block * kBlockLen;
    uint16_t* q = reinterpret_cast<uint16_t*>(shared_memory());  // [kWarpRows, kPitch]
    uint16_t* keys = q + kWarpRows * kPitch;                     // [kBlockLen, kPitch]
    uint16_t* values = keys + kBlockLen * kPitch;                // [kBlockLen, kPitch]
    const std::byte* from = keys_at(pages, sequence, kv_head, block);
    copy_block<T, kDim, kWarp>(keys, from, rows, row_width);
    copy_block<T, kDim, kWarp>(values, from + int64_t{kBlockLen} * row_width * 2, rows, row_width);

    for (int begin = 0; begin < group; begin += kWarpRows) {
        const int head = kv_head * group + begin;
        copy_heads<T, kDim>(q, args, row, head, group - begin);
        copy_async_wait<1>();  // the keys; the values may still be in flight
        sync_warp();
        float score[kScoreTiles][4], highest[2], total[2];
        score_block<T, kDim>(q, keys, head_dim, score);
        const int of_group = begin + lane() / 4;  // the lane's first row
        SeenBlock rows_seen[2];
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const bool there = of_group + 8 * i < group;
            rows_seen[i] = {
                seen, there ? biases_at(args.relative, head + lane() / 4 + 8 * i, query.position, block) : nullptr};
        }
        uint32_t probs[kBlockLen / 16][4];
        probabilities<T>(score, rows_seen, highest, total, probs);
        copy_async_wait<0>();
        sync_warp();
        float* partial[2];
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            partial[i] = args.partials + partial_at(args, row, head + lane() / 4 + 8 * i, block);
            if (of_group + 8 * i >= group || lane() % 4 != 0) continue;
            partial[i][head_dim] = highest[i];
            partial[i][head_dim + 1] = total[i];
        }
        weigh_values<T, kDim>(probs, values, head_dim, [&](int n, const float (&part)[4]) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const int d = 8 * n + lane() % 4 * 2 + i % 2;
                if (d < head_dim && of_group + i / 2 * 8 < group) partial[i / 2][d] = part[i];
            }
        });
        sync_warp();  // before the queries of the next heads
    }
}

// Merges the blocks of a row into m, l and O. One thread per element of a head's row.
constexpr int kMostMergeThreads = kMaxHeadDim;
template <bool kFloat32>
FA_KERNEL(kMostMergeThreads)
merge_blocks(const AttentionArgs args) {
    const int s = block_x(), head = block_y(), d = thread_id(), head_dim = args.pages.head_dim;
    if (s >= count_of(args.sequences.rows) || args.q_begin[s] == args.q_begin[s + 1] || d >= head_dim) return;
    const Sequence sequence = sequence_at(args.sequences, args.pages, s);
    const int row = args.q_begin[s];
    const Range blocks = query_of(args, sequence, row).seen.blocks();
    const float* partial = args.partials + partial_at(args, row, head, blocks.begin);
    Running<kFloat32> running;
    float sum = 0.0f;
#pragma unroll 4
    for (int block = blocks.begin; block < blocks.end; ++block, partial += head_dim + 2) {
        running.merge(partial[head_dim], partial[head_dim + 1]);
        sum = running.merged(sum, partial[d]);
    }
    write(args.out, row, head * head_dim + d, args.n_head * head_dim, running.divided(sum));
}

template <class T, int kDim>
void launch_decode(const AttentionArgs& args, Stream stream) {
    // Sequences are in x, because y has at most 65,535 blocks.
    const Grid grid{int64_t{args.sequences.rows.most} * args.pages.n_kv_head,
                    divide_up(args.sequences.most_positions, kBlockLen)};
    launch("attention_decode", decode_block<T, kDim>, grid, kWarp, MmaShape<T, kDim>::bytes(kWarpRows), args, stream);
}

template <class T>
void launch_decode(const AttentionArgs& args, Stream stream) {
    if (args.pages.head_dim <= 32) return launch_decode<T, 32>(args, stream);
    if (args.pages.head_dim <= 64) return launch_decode<T, 64>(args, stream);
    if (args.pages.head_dim <= 128) return launch_decode<T, 128>(args, stream);
    launch_decode<T, 256>(args, stream);
}

}  // namespace

void launch_attention_decode(const AttentionArgs& args, Stream stream) {
    switch (args.pages.type) {
        case Type::kFloat32: launch_decode_float32(args, stream); break;
        case Type::kBfloat16: launch_decode<Bf16>(args, stream); break;
        case Type::kFloat16: launch_decode<F16>(args, stream); break;
    }
    const auto merge = args.pages.type == Type::kFloat32 ? merge_blocks<true> : merge_blocks<false>;
    const auto threads = static_cast<int>(divide_up(args.pages.head_dim, kWarp)) * kWarp;
    launch("attention_merge", merge, {args.sequences.rows.most, args.n_head}, threads, /*shared_bytes=*/0, args,
           stream);
}

}  // namespace fastattn::cuda
