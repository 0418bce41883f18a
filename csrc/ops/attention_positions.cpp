#include "ops/attention_positions.h"

#include <algorithm>

namespace fastattn::ops {
namespace {

constexpr int64_t kPad = 16;  // floats that the kernel may read before and after the scores
// Columns per key: at most 127, in up to three panels.
constexpr int64_t kKeyStride = 3 * kPanelWidth;

int64_t blocks_of(int64_t positions) {
    return (positions + kBlockLen - 1) / kBlockLen;
}

// Offsets in the room of a thread, in floats.
struct Room {
    int64_t query, key, key_first, words, scales, floats = 0;

    Room(const PositionTables& tables, int64_t positions) {
        query = take(kPad + (tables.keys.count > 0 ? kBlockLen * int64_t{tables.columns} : 0) + kPad) + kPad;
        key = take(kPad + (tables.queries.count > 0 ? blocks_of(positions) * kBlockLen * kKeyStride : 0) + kPad) + kPad;
        key_first = take(blocks_of(positions));
        words = take(kBlockLen * quantized_stride(std::max(tables.keys.words, tables.queries.words)));
        scales = take(kBlockLen);
    }

private:
    int64_t take(int64_t n) {
        const int64_t at = floats;
        floats += (n + 15) / 16 * 16;
        return at;
    }
};

}  // namespace

int64_t position_room(const PositionTables& tables, int64_t positions) {
    return Room(tables, positions).floats;
}

PositionProducts::PositionProducts(const KernelTable& kernels, const AttentionOp& op, const SequenceBlocks& s,
                                   int32_t head, int thread)
    : kernels_(kernels),
      op_(op),
      s_(s),
      head_(head),
      kv_len_(s.token_end - s.token_begin),
      scratch_(op.scratch[thread]) {
    float* room = op.positions.room[thread];
    const Room at(op.positions, kv_len_);
    query_ = room + at.query;
    key_ = room + at.key;
    key_first_ = reinterpret_cast<int32_t*>(room + at.key_first);
    rounded_ = {reinterpret_cast<int32_t*>(room + at.words), room + at.scales};
    scores_.columns = op.positions.column_of;
}

const PositionScores& PositionProducts::of(int32_t begin, int32_t end, int32_t position) {
    const bool same = window_of(position) == window_;
    window_ = window_of(position);
    if (op_.positions.keys.count > 0) score_queries(begin, end);
    if (op_.positions.queries.count > 0 && !same) score_keys();
    return scores_;
}

// The panels of this head that have the columns of relative positions [first, last].
PositionProducts::Panels PositionProducts::panels_between(int32_t first, int32_t last) const {
    const auto column = [&](int32_t relative) { return static_cast<int32_t>(op_.positions.column_of[relative]); };
    return {column(first) / kPanelWidth, column(last) / kPanelWidth + 1};
}

// Products of query rows [begin, end) with the columns of all keys, for any position in the window.
void PositionProducts::score_queries(int32_t begin, int32_t end) {
    const int32_t first = window_ * kBlockLen;
    const Panels panels = panels_between(-(first + kBlockLen - 1), kv_len_ - 1 - first);
    scores_.query = query_;
    scores_.query_stride = int64_t{panels.end - panels.begin} * kPanelWidth;
    scores_.query_first = panels.begin * kPanelWidth;
    const View q{op_.q.row(begin) + int64_t{head_} * op_.head_dim, end - begin, op_.q.stride, op_.head_dim};
    multiply(op_.positions.keys, q, panels, query_, scores_.query_stride);
}

// Products of the keys of each block with the columns of all positions in the window.
void PositionProducts::score_keys() {
    scores_.key = key_;
    scores_.key_stride = kKeyStride;
    scores_.key_first = key_first_;
    for (int32_t j = 0; j < kv_len_; j += kBlockLen) {
        const int32_t relative = j - window_ * kBlockLen;
        const Panels panels = panels_between(relative - (kBlockLen - 1), relative + (kBlockLen - 1));
        key_first_[j / kBlockLen] = panels.begin * kPanelWidth;
        const View k{op_.k.row(s_.token_begin + j) + int64_t{head_} * op_.head_dim, std::min(kBlockLen, kv_len_ - j),
                     op_.k.stride, op_.head_dim};
        multiply(op_.positions.queries, k, panels, key_ + j * kKeyStride, kKeyStride);
    }
}

// out[i, c] = x[i] times the row of column c, for the columns of some panels.
void PositionProducts::multiply(const Matrix& table, View x, Panels panels, float* out, int64_t out_stride) const {
    const bool plain = table.format == Format::kFloat32;
    if (!plain) round_rows(kernels_, x, 0, x.rows, {.format = table.format, .words = table.words, .to = rounded_});
    const int32_t of_head = head_ * (op_.positions.columns / kPanelWidth);
    kernels_.linear[static_cast<int>(table.format)]({.a = plain ? static_cast<const void*>(x.data) : rounded_.words,
                                                     .a_stride = plain ? x.stride : quantized_stride(table.words),
                                                     .a_scales = plain ? nullptr : rounded_.scales,
                                                     .panels = table.panels,
                                                     .scales = table.scales,
                                                     .sums = table.sums,
                                                     .bias = nullptr,
                                                     .residual = nullptr,
                                                     .residual_stride = 0,
                                                     .c = out,
                                                     .c_stride = out_stride,
                                                     .scratch = scratch_,
                                                     .m = static_cast<int32_t>(x.rows),
                                                     .words = table.words,
                                                     .n = static_cast<int32_t>(table.count) * kPanelWidth,
                                                     .panel_begin = of_head + panels.begin,
                                                     .panel_end = of_head + panels.end,
                                                     .activation = Activation::kNone});
}

}  // namespace fastattn::ops
