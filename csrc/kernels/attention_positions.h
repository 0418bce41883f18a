// Adds the scores of relative positions to S of some query rows and a block.
#pragma once
#include "kernels/attention_scores.h"

namespace fastattn::FASTATTN_TARGET {
namespace {

// The scores at `row` of the columns of sixteen consecutive relative positions. `columns` has those columns, `first` is
// the column of row[0].
FA_INLINE Vec load_columns(const float* row, const float* columns, int first) {
    const auto lowest = static_cast<int>(columns[0]);
    const float* from = row + (lowest - first);
    if (columns[kLanes - 1] == columns[0] + (kLanes - 1)) return load(from);
    return lookup(from, round_to_int(sub(load(columns), broadcast(columns[0]))));
}

// The scores of the keys at sixteen positions from `position` on: word i of row r is that of key position + i for query
// row q.first + 15 - r.
FA_INLINE void load_key_scores(const AttentionArgs& args, const QueryRows& q, int position, Words (&rows)[kLanes]) {
    const PositionScores& p = *args.positions;
    const float* scores = p.key + position * p.key_stride;
    const int first = p.key_first[position / kBlockLen];
    // Relative to the last of sixteen rows, because columns ascend with the key's position.
    const float* columns = p.columns + (position - (args.q_position + q.first + kLanes - 1));
    for (int i = 0; i < kLanes; ++i) rows[i] = as_words(load_columns(scores + i * p.key_stride, columns + i, first));
    transpose(rows);
}

// S of row r plus `scores` times the scale. In formats other than float32, S has units of log2(e).
template <Format kFormat>
FA_INLINE Vec add_scores(const AttentionArgs& args, const QueryRows& q, int r, Vec s, Vec scores) {
    if constexpr (kFormat == Format::kFloat32) return fma(scores, broadcast(args.scale), s);
    if constexpr (kFormat == Format::kInt8) s = mul(s, broadcast(q.scale.of[r]));
    return fma(scores, broadcast(args.scale * kLog2E), s);
}

// Adds the scores of relative positions to S, for the first `vecs` vectors of a block. finish_scores replaces S at
// positions that a row does not see.
template <Format kFormat>
void add_positions(const AttentionArgs& args, const QueryRows& q, BlockScores& scores, int block, int vecs) {
    const PositionScores& p = *args.positions;
    for (int c = 0; c < vecs; ++c) {
        const int position = block * kBlockLen + c * kLanes;
        Words of_keys[kLanes];
        if (p.key != nullptr) load_key_scores(args, q, position, of_keys);
        for (int r = 0; r < q.count; ++r) {
            float* at = scores.s + r * kBlockLen + c * kLanes;
            Vec sum = zero();
            if (p.query != nullptr) {
                const float* columns = p.columns + (position - (args.q_position + q.first + r));
                sum = load_columns(p.query + (q.first + r) * p.query_stride, columns, p.query_first);
                if (p.key != nullptr) sum = add(sum, as_floats(of_keys[kLanes - 1 - r]));
            } else {
                sum = as_floats(of_keys[kLanes - 1 - r]);
            }
            store(at, add_scores<kFormat>(args, q, r, load(at), sum));
        }
    }
}

}  // namespace
}  // namespace fastattn::FASTATTN_TARGET
