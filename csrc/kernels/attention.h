// Softmax attention over KV blocks, one template for every format (docs/design/0006-kv-dtypes.md).
//
// Online softmax, as in the FlashAttention papers. A query row visits its blocks in order:
//   attention_scores.h    S = Q K^T
//   attention_positions.h S plus scores of relative positions, if there are any
//   attention_softcap.h   softcap tanh(S / softcap), if there is a softcap
//   attention_softmax.h   P = e^(S - m), and the running maximum m and sum l
//   attention_values.h    O, the accumulator of P V
//   attention_tiles.h     the same products on AMX tiles
// The output is O / l.
//
// No arithmetic of a row involves another row, and a block of which a row sees nothing is not merged into that row. So
// a row's bits do not depend on the grouping of rows, the chunks of a prompt or the current length of the sequence.
#pragma once
#include "kernels/attention_positions.h"
#include "kernels/attention_softcap.h"
#include "kernels/attention_tiles.h"

namespace fastattn::FASTATTN_TARGET {
namespace {

// Vectors of a block up to the last position that one of the rows sees.
FA_INLINE int vecs_of(const AttentionArgs& args, const QueryRows& q, int block) {
    return (visible(args, q.first + q.count - 1, block).end + kLanes - 1) / kLanes;
}

// Writes O / l.
template <Format kFormat>
FA_INLINE void write_rows(const AttentionArgs& args, Workspace& work) {
    RunningRows& running = work.running;
    const Vec one = broadcast(1.0f), l = running.l.all();
    const Vec divisor = select(equal(l, zero()), one, l);  // a row that sees nothing gives 0, not 0 / 0
    PerRow factor;
    factor = kFormat == Format::kFloat32 ? divisor : div(one, divisor);
    for (int r = 0; r < work.q.count; ++r) {
        const Vec by = broadcast(factor.of[r]);
        float* out = args.out + (work.q.first + r) * args.out_stride;
        for (int d = 0; d < args.head_dim; d += kLanes) {
            const Vec o = load(running.o + r * running.stride + d);
            const Vec result = kFormat == Format::kFloat32 ? div(o, by) : mul(o, by);
            if (args.out_bfloat16) {
                store_bf16(reinterpret_cast<uint16_t*>(out) + d, result);
                continue;
            }
            const int lanes = clamp_to(args.head_dim - d, kLanes);
            if (lanes == kLanes)
                store(out + d, result);
            else
                store_partial(out + d, result, lanes);
        }
    }
}

// Attention of the rows work.q.first to work.q.first + work.q.count - 1.
template <Format kFormat>
void attend(const AttentionArgs& args, Workspace& work) {
    const QueryRows& q = work.q;
    work.running.clear();
    read_queries<kFormat>(args, work.q);
    for (int64_t d = 0; d < q.count * work.running.stride; d += kLanes) store(work.running.o + d, zero());
    const int ahead_row = q.first + q.count;
    prefetch_rows(args.q + ahead_row * args.q_stride, args.q_stride, clamp_to(args.q_len - ahead_row, kAttentionRows),
                  args.head_dim);
    const Range blocks = blocks_of(args, q.first);
    for (int block = blocks.begin; block < blocks.end; ++block) {
        const auto kv = block_at<kFormat>(args, q, block);
        const auto next = block + 1 < blocks.end ? block_at<kFormat>(args, q, block + 1) : kv;
        const int vecs = vecs_of(args, q, block);
        scores_of_target<kFormat>(args, work, kv, vecs);
        if (args.positions) add_positions<kFormat>(args, q, work.block, block, vecs);
        if (args.softcap != 0.0f) cap_scores<kFormat>(args, q, work.block, vecs);
        find_maxima<kFormat>(args, q, work.block, block, vecs);
        exponentiate<kFormat>(args, work, kv, block, vecs);
        values_of_target<kFormat>(args, work, kv, block, next.keys);
    }
    write_rows<kFormat>(args, work);
}

template <Format kFormat>
void attention(const AttentionArgs& args) {
    Workspace& work = Workspace::in(args);
#if FASTATTN_HAS_TILES
    const bool on_tiles = kFormat != Format::kFloat32 && args.rows_per_head == 0 && args.q_len >= kLeastTileRows;
    const TileRegisters tiles(on_tiles ? 2 * kTileWords : 0);
#endif
    for (int row = 0; row < args.q_len; row += work.q.count) {
        work.q.first = row;
        work.q.count = rows_together(args, row);
        attend<kFormat>(args, work);
    }
}

// Turns the scores of one row in args.out into probabilities; 0 at positions that the row does not see.
template <Format kFormat>
FA_INLINE void normalize_scores(const AttentionArgs& args, const Workspace& work, float* probs) {
    const Range seen = visible(args, work.q.first);
    PerRow shift;
    shift = shift_of(broadcast(work.running.m.of[0]));
    const float l = work.running.l.of[0];
    const Vec divisor = broadcast(l == 0.0f ? 1.0f : l);  // a row that sees nothing gives 0, not 0 / 0
    for (int i = 0; i < args.kv_len; i += kLanes) {
        const int lanes = clamp_to(args.kv_len - i, kLanes);
        const int written = i + kLanes > seen.begin ? clamp_to(seen.end - i, kLanes) : 0;
        const Vec s = load_partial(probs + i, written);
        const Vec p = div(probability<kFormat>(s, work.q.late_scale.of[0], shift.of[0]), divisor);
        store_partial(probs + i, seen.lanes_or(p, zero(), i), lanes);
    }
}

// One row: writes the scores to probs block by block and updates m and l, then turns the scores into probabilities.
template <Format kFormat>
void probs_row(const AttentionArgs& args, Workspace& work) {
    const QueryRows& q = work.q;
    float* probs = args.out + q.first * args.out_stride;
    work.running.clear();
    read_queries<kFormat>(args, work.q);
    const Range blocks = blocks_of(args, q.first);
    for (int block = blocks.begin; block < blocks.end; ++block) {
        const auto kv = block_at<kFormat>(args, q, block);
        const int vecs = vecs_of(args, q, block), count = visible(args, q.first, block).end;
        score_block<kFormat>(args, q, work.block, kv, vecs);
        if (args.positions) add_positions<kFormat>(args, q, work.block, block, vecs);
        if (args.softcap != 0.0f) cap_scores<kFormat>(args, q, work.block, vecs);
        find_maxima<kFormat>(args, q, work.block, block, vecs);
        for (int i = 0; i < count; i += kLanes)
            store_partial(probs + block * kBlockLen + i, load(work.block.s + i), clamp_to(count - i, kLanes));
        exponentiate<kFormat>(args, work, kv, block, vecs);
    }
    normalize_scores<kFormat>(args, work, probs);
}

template <Format kFormat>
void attention_probs(const AttentionArgs& args) {
    Workspace& work = Workspace::in(args);
    work.q.count = 1;
    for (work.q.first = 0; work.q.first < args.q_len; ++work.q.first) probs_row<kFormat>(args, work);
}

}  // namespace
}  // namespace fastattn::FASTATTN_TARGET
