#include "kernels/attention_scores.h"
#include "kernels/kernel_list.h"

namespace fastattn::FASTATTN_TARGET {
namespace {

// One row: the scores into probs, block by block, with the running maximum and total of attention_f32; then one pass
// that turns them into probabilities.
void probs_row(const AttentionF32Args& args, int row) {
    float* probs = args.out + row * args.out_stride;
    const float* q = args.q + row * args.q_stride;
    float* scores = args.scratch;  // [kBlockLen]
    Vec row_max = broadcast(-kInf), row_total = zero();
    int seen = 0;
    for (int block = 0; block < visible_blocks(args, row); ++block) {
        const int begin = block * kBlockLen, count = visible_in_block(args, row, block);
        const float* mask = args.mask ? args.mask + row * args.mask_stride + begin : nullptr;
        score_block<1>(q, args.q_stride, args.blocks[block] + args.k_offset, args.head_dim, args.scale, count, scores);
        Vec s[kBlockVecs];
        for (int c = 0; c < kBlockVecs; ++c) s[c] = load(scores + c * kLanes);
        mask_row(s, mask, count);
        for (int c = 0; c < kBlockVecs; ++c)
            store_partial(probs + begin + c * kLanes, s[c], clamp_to(count - c * kLanes, kLanes));
        const Vec block_max = broadcast(reduce_max(max(max(s[0], s[1]), max(s[2], s[3]))));
        const Vec block_shift = select(equal(block_max, broadcast(-kInf)), zero(), block_max);
        for (int c = 0; c < kBlockVecs; ++c) s[c] = exp(sub(s[c], block_shift));
        const Vec block_total = broadcast(reduce_add(add(add(s[0], s[1]), add(s[2], s[3]))));
        const Vec new_max = max(row_max, block_max);
        const Vec shift = select(equal(new_max, broadcast(-kInf)), zero(), new_max);
        row_total = fma(block_total, exp(sub(block_max, shift)), mul(row_total, exp(sub(row_max, shift))));
        row_max = new_max;
        seen = begin + count;
    }
    const Vec shift = select(equal(row_max, broadcast(-kInf)), zero(), row_max);
    const Vec total = select(equal(row_total, zero()), broadcast(1.0f), row_total);  // sees nothing: 0, not 0 / 0
    for (int i = 0; i < args.kv_len; i += kLanes) {
        const int lanes = clamp_to(args.kv_len - i, kLanes), lanes_seen = clamp_to(seen - i, kLanes);
        const Vec p = div(exp(sub(load_partial(probs + i, lanes_seen), shift)), total);
        store_partial(probs + i, select(first_lanes(lanes_seen), p, zero()), lanes);
    }
}

}  // namespace

void attention_probs_f32(const AttentionProbsF32Args& args) {
    for (int row = 0; row < args.attention.q_len; ++row) probs_row(args.attention, row);
}

}  // namespace fastattn::FASTATTN_TARGET
