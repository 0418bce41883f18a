// Attention over pages of 16-bit types for many query rows. Four warps compute 64 rows of a sequence and one head,
// block after block of 64 positions.
#include "cuda/kernels/attention_mma.h"

namespace fastattn::cuda {
namespace {

constexpr int kPrefillRows = 64;
constexpr int kPrefillThreads = kPrefillRows / kWarpRows * kWarp;

template <class T, int kDim>
FA_DEVICE void copy_queries(uint16_t* q, const AttentionArgs& args, const RowTile& tile, int head) {
    const int head_dim = args.pages.head_dim;
    for (int i = thread_id(); i < kPrefillRows * kDim / 2; i += kPrefillThreads) {
        const int r = i / (kDim / 2), d = i % (kDim / 2) * 2;
        uint32_t pair = 0;
        if (tile.begin + r < tile.end)
            pair = query_pair<T>(args.q + (tile.begin + r) * args.q_stride + head * head_dim, d, head_dim,
                                 args.scale * kLog2E);
        *reinterpret_cast<uint32_t*>(q + r * MmaShape<T, kDim>::kPitch + d) = pair;
    }
}

// Writes O / l of the tile. Goes through shared memory, to write rows 16 bytes at a time.
template <class T, int kDim>
FA_DEVICE void write_rows(const AttentionArgs& args, const RowTile& tile, int head, const Running<false> (&running)[2],
                          const float (&sum)[kDim / 8][4]) {
    constexpr int kOutPitch = kDim + 4;
    static_assert(kPrefillRows * kOutPitch * 2 <= (kPrefillRows + 2 * kBlockLen) * MmaShape<T, kDim>::kPitch);
    float* out = reinterpret_cast<float*>(shared_memory());
    sync_threads();
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
        for (int n = 0; n < kDim / 8; ++n)
#pragma unroll
            for (int j = 0; j < 2; ++j)
                out[(warp() * kWarpRows + lane() / 4 + 8 * i) * kOutPitch + 8 * n + lane() % 4 * 2 + j] =
                    running[i].divided(sum[n][2 * i + j]);
    sync_threads();
    const int head_dim = args.pages.head_dim, width = args.n_head * head_dim;
    for (int i = 4 * thread_id(); i < kPrefillRows * kDim; i += 4 * kPrefillThreads) {
        const int r = i / kDim, d = i % kDim;
        if (tile.begin + r >= tile.end || d >= head_dim) continue;
        write_some(args.out, tile.begin + r, head * head_dim + d, width, load_four(out + r * kOutPitch + d),
                   head_dim - d);
    }
}

template <class T, int kDim>
FA_KERNEL(kPrefillThreads)
attention_prefill(const AttentionArgs args) {
    constexpr int kPitch = MmaShape<T, kDim>::kPitch;
    const RowTile tile = find_tile<kPrefillRows>(args.q_begin, count_of(args.sequences.rows), block_x());
    if (tile.sequence < 0) return;
    const KvPages& pages = args.pages;
    const Sequence sequence = sequence_at(args.sequences, pages, tile.sequence);
    const int head = block_y(), kv_head = head / (args.n_head / pages.n_kv_head), head_dim = pages.head_dim;
    const int row_width = static_cast<int>(row_elements(head_dim));
    uint16_t* q = reinterpret_cast<uint16_t*>(shared_memory());  // [kPrefillRows, kPitch]
    uint16_t* keys = q + kPrefillRows * kPitch;                  // [kBlockLen, kPitch]
    uint16_t* values = keys + kBlockLen * kPitch;                // [kBlockLen, kPitch]

    const auto copy = [&](uint16_t* tile_of, int block, int64_t rows_after) {
        const std::byte* from = keys_at(pages, sequence, kv_head, block) + rows_after * row_width * 2;
        copy_block<T, kDim, kPrefillThreads>(tile_of, from, sequence.kv_len - block * kBlockLen, row_width);
    };
    const Range blocks{query_of(args, sequence, tile.begin).seen.blocks().begin,
                       query_of(args, sequence, tile.end - 1).seen.blocks().end};
    if (!blocks.empty()) copy(keys, blocks.begin, 0);
    copy_queries<T, kDim>(q, args, tile, head);

    // The lane's rows.
    const int first = tile.begin + warp() * kWarpRows + lane() / 4;
    Query query[2];
#pragma unroll
    for (int i = 0; i < 2; ++i)
        query[i] = first + 8 * i < tile.end ? query_of(args, sequence, first + 8 * i) : Query{0, {0, 0}};
    Running<false> running[2];    // m and l of the lane's rows
    float sum[kDim / 8][4] = {};  // O
    for (int block = blocks.begin; block < blocks.end; ++block) {
        copy_async_wait<0>();
        sync_threads();
        copy(values, block, kBlockLen);  // while scores are computed
        sync_warp();                     // ldmatrix and mma need all lanes together; the copies may have separated them
        float score[kScoreTiles][4], highest[2], total[2];
        score_block<T, kDim>(q + warp() * kWarpRows * kPitch, keys, head_dim, score);
        SeenBlock rows[2];
#pragma unroll
        for (int i = 0; i < 2; ++i)
            rows[i] = {query[i].seen.of_block(block), biases_at(args.relative, head, query[i].position, block)};
        uint32_t probs[kBlockLen / 16][4];
        probabilities<T>(score, rows, highest, total, probs);
#pragma unroll
        for (int i = 0; i < 2; ++i)
            if (!rows[i].seen.empty()) running[i].merge(highest[i], total[i]);
        copy_async_wait<0>();
        sync_threads();
        if (block + 1 < blocks.end) copy(keys, block + 1, 0);  // while P V is added up
        weigh_values<T, kDim>(probs, values, head_dim, [&](int n, const float (&part)[4]) {
#pragma unroll
            for (int i = 0; i < 4; ++i)
                if (!rows[i / 2].seen.empty()) sum[n][i] = running[i / 2].merged(sum[n][i], part[i]);
        });
    }
    write_rows<T, kDim>(args, tile, head, running, sum);
}

template <class T, int kDim>
void launch_prefill(const AttentionArgs& args, Stream stream) {
    launch("attention_prefill", attention_prefill<T, kDim>, {most_tiles<kPrefillRows>(args), args.n_head},
           kPrefillThreads, MmaShape<T, kDim>::bytes(kPrefillRows), args, stream);
}

template <class T>
void launch_prefill(const AttentionArgs& args, Stream stream) {
    if (args.pages.head_dim <= 32) return launch_prefill<T, 32>(args, stream);
    if (args.pages.head_dim <= 64) return launch_prefill<T, 64>(args, stream);
    if (args.pages.head_dim <= 128) return launch_prefill<T, 128>(args, stream);
    launch_prefill<T, 256>(args, stream);
}

}  // namespace

void launch_attention_prefill(const AttentionArgs& args, Stream stream) {
    switch (args.pages.type) {
        case Type::kFloat32: return launch_prefill_float32(args, stream);
        case Type::kBfloat16: return launch_prefill<Bf16>(args, stream);
        case Type::kFloat16: return launch_prefill<F16>(args, stream);
    }
}

}  // namespace fastattn::cuda
