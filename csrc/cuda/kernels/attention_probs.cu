// Attention maps: 64 threads compute a row of probabilities, one position each per block. Queries are rounded as in the
// attention. For pages of float32 the bits are the CPU's.
#include "cuda/kernels/attention_mma.h"

namespace fastattn::cuda {
namespace {

constexpr int kProbsThreads = kBlockLen;

template <Type kType>
FA_KERNEL(kProbsThreads)
attention_probs(const AttentionProbsArgs args) {
    constexpr bool kFloat32 = kType == Type::kFloat32;
    const KvPages& pages = args.pages;
    const int token = block_x(), map = block_y(), head_dim = pages.head_dim, t = thread_id();
    const int head = args.first_head + map;
    if (token >= count_of(args.tokens)) return;
    const int s = sequence_of(args.sequences.cu_seqlens, count_of(args.sequences.rows), token);
    const Sequence sequence = sequence_at(args.sequences, pages, s);
    const int q_len = args.sequences.cu_seqlens[s + 1] - sequence.token_begin, q_row = token - sequence.token_begin;
    const Query query = query_at(args.relative, sequence, token);
    const Range seen = query.seen, blocks = seen.blocks();
    const int kv_head = head / (args.n_head / pages.n_kv_head);
    float* probs = args.probs + args.offsets[s] + (int64_t{map} * q_len + q_row) * sequence.kv_len;
    float* q = reinterpret_cast<float*>(shared_memory());  // [head_dim]
    float* room = q + head_dim;                            // [kBlockSumFloats]
    for (int d = t; d < head_dim; d += kProbsThreads) {
        const float x = args.q[token * args.q_stride + head * head_dim + d];
        const uint16_t bits = kFloat32 ? uint16_t{0} : round_to(kType, x * (args.scale * kLog2E));
        q[d] = kFloat32 ? x : read(&bits, 0, kType);
    }
    sync_threads();
    Running<kFloat32> running;
    for (int block = blocks.begin; block < blocks.end; ++block) {
        const int position = block * kBlockLen + t;
        float score = -kInf;
        if (seen.has(position)) {
            const std::byte* keys = keys_at(pages, sequence, kv_head, block);
            score = 0.0f;
            for (int d = 0; d < head_dim; ++d)
                score = math::fma(q[d], read(keys, t * row_elements(head_dim) + d, kType), score);
            if (kFloat32) score *= args.scale;
            if (const float* bias = biases_at(args.relative, head, query.position, block))
                score = kFloat32 ? score + bias[t] : math::fma(bias[t], kLog2E, score);
            probs[position] = score;
        }
        const BlockSums sums = sum_block<kFloat32>(score, room);
        running.merge(sums.highest, sums.total);
        sync_threads();  // before the room is reused
    }
    const float shift = shift_of(running.highest), total = running.total == 0.0f ? 1.0f : running.total;
    for (int position = t; position < sequence.kv_len; position += kProbsThreads)
        probs[position] = seen.has(position) ? softmax_exp<kFloat32>(probs[position] - shift) / total : 0.0f;
}

}  // namespace

void launch_attention_probs(const AttentionProbsArgs& args, Stream stream) {
    const auto kernel = args.pages.type == Type::kFloat32    ? attention_probs<Type::kFloat32>
                        : args.pages.type == Type::kBfloat16 ? attention_probs<Type::kBfloat16>
                                                             : attention_probs<Type::kFloat16>;
    launch("attention_probs", kernel, {args.tokens.most, args.n_maps}, kProbsThreads,
           (args.pages.head_dim + kBlockSumFloats) * int64_t{4}, args, stream);
}

}  // namespace fastattn::cuda
