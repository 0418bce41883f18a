#include <algorithm>

#include "ops/ops.h"

namespace fastattn::ops {
namespace {

constexpr int32_t kQueryRows = 96;  // of one chunk
constexpr int32_t kStoreRows = 256;

struct Piece {
    int32_t sequence, begin, end;  // rows of q, k or v
    int32_t head;
};

// Chunks are (sequence, some rows, head). Each thread takes rising chunk numbers, so a cursor finds the sequence.
// The last rows of the last sequence come first: with causal attention they cost most.
template <class Begin, class End>
class Pieces {
public:
    Pieces(const AttentionOp& op, int32_t heads, int32_t rows, Begin begin, End end)
        : op_(op), heads_(heads), rows_(rows), begin_(begin), end_(end) {
        for (int32_t s = 0; s < op.n_sequences; ++s) total_ += pieces_of(s);
        sequence_ = op.n_sequences - 1;
        first_ = sequence_ >= 0 ? total_ - pieces_of(sequence_) : 0;
    }
    int64_t count() const { return total_ * heads_; }
    Piece at(int64_t chunk) {
        const int64_t piece = total_ - 1 - chunk / heads_;
        while (piece < first_) first_ -= pieces_of(--sequence_);
        const auto& s = op_.sequences[sequence_];
        const auto begin = static_cast<int32_t>(begin_(s) + (piece - first_) * rows_);
        return {sequence_, begin, std::min(begin + rows_, end_(s)), static_cast<int32_t>(chunk % heads_)};
    }

private:
    int64_t pieces_of(int32_t s) const {
        return (end_(op_.sequences[s]) - begin_(op_.sequences[s]) + rows_ - 1) / rows_;
    }
    const AttentionOp& op_;
    int32_t heads_, rows_, sequence_ = 0;
    Begin begin_;
    End end_;
    int64_t total_ = 0, first_ = 0;
};

int64_t half_block(const AttentionOp& op) {
    return int64_t{kBlockLen} * op.head_dim;
}

int64_t k_offset(const AttentionOp& op, int32_t kv_head) {
    return op.block_offset + kv_head * op.head_offset;
}

AttentionF32Args head_args(const AttentionOp& op, const SequenceBlocks& s, int32_t head, int thread) {
    const int64_t offset = k_offset(op, head / (op.n_head / op.n_kv_head));
    return {.q = nullptr,
            .q_stride = op.q.stride,
            .blocks = s.blocks,
            .k_offset = offset,
            .v_offset = offset + half_block(op),
            .mask = nullptr,
            .mask_stride = 0,
            .out = nullptr,
            .out_stride = op.out.stride,
            .scratch = op.scratch[thread],
            .q_len = 0,
            .q_position = 0,
            .kv_len = s.position + s.token_end - s.token_begin,
            .head_dim = op.head_dim,
            .causal = op.causal,
            .scale = op.scale};
}

// Calls run(begin, end, position) for runs of query rows at neighbouring positions.
template <class F>
void for_runs(const AttentionOp& op, const SequenceBlocks& s, int32_t begin, int32_t end, const F& run) {
    if (op.query_tokens == nullptr) {
        run(begin, end, s.position + begin - s.q_begin);
        return;
    }
    for (int32_t i = begin; i < end;) {
        int32_t j = i + 1;
        while (j < end && op.query_tokens[j] == op.query_tokens[j - 1] + 1) ++j;
        run(i, j, s.position + op.query_tokens[i] - s.token_begin);
        i = j;
    }
}

}  // namespace

void kv_store(Team& team, const KernelTable& kernels, const AttentionOp& op) {
    Pieces pieces(
        op, op.n_kv_head, kStoreRows, [](const SequenceBlocks& s) { return s.token_begin; },
        [](const SequenceBlocks& s) { return s.token_end; });
    team.for_chunks(pieces.count(), [&](int64_t chunk) {
        const Piece piece = pieces.at(chunk);
        const SequenceBlocks& s = op.sequences[piece.sequence];
        const int64_t offset = k_offset(op, piece.head);
        const int64_t column = int64_t{piece.head} * op.head_dim;
        kernels.kv_store_f32({.k = op.k.row(piece.begin) + column,
                              .v = op.v.row(piece.begin) + column,
                              .k_stride = op.k.stride,
                              .v_stride = op.v.stride,
                              .blocks = s.blocks,
                              .k_offset = offset,
                              .v_offset = offset + half_block(op),
                              .rows = piece.end - piece.begin,
                              .position = s.position + piece.begin - s.token_begin,
                              .head_dim = op.head_dim});
    });
}

void attention(Team& team, const KernelTable& kernels, const AttentionOp& op) {
    Pieces pieces(
        op, op.n_head, kQueryRows, [](const SequenceBlocks& s) { return s.q_begin; },
        [](const SequenceBlocks& s) { return s.q_end; });
    team.for_chunks(pieces.count(), [&](int64_t chunk) {
        const Piece piece = pieces.at(chunk);
        const SequenceBlocks& s = op.sequences[piece.sequence];
        AttentionF32Args args = head_args(op, s, piece.head, team.index());
        const int64_t column = int64_t{piece.head} * op.head_dim;
        for_runs(op, s, piece.begin, piece.end, [&](int32_t begin, int32_t end, int32_t position) {
            args.q = op.q.row(begin) + column;
            args.out = op.out.row(begin) + column;
            args.q_len = end - begin;
            args.q_position = position;
            kernels.attention_f32(args);
        });
    });
}

void attention_probs(Team& team, const KernelTable& kernels, const AttentionOp& op) {
    team.for_chunks(int64_t{op.n_sequences} * op.n_head, [&](int64_t chunk) {
        const auto sequence = static_cast<int32_t>(chunk / op.n_head);
        const auto head = static_cast<int32_t>(chunk % op.n_head);
        float* out = op.probs;
        for (int32_t i = 0; i < sequence; ++i) {
            const SequenceBlocks& before = op.sequences[i];
            out += int64_t{op.n_head} * (before.q_end - before.q_begin) *
                   (before.position + before.token_end - before.token_begin);
        }
        const SequenceBlocks& s = op.sequences[sequence];
        AttentionF32Args args = head_args(op, s, head, team.index());
        args.q_len = s.q_end - s.q_begin;
        if (args.q_len == 0) return;
        args.q = op.q.row(s.q_begin) + int64_t{head} * op.head_dim;
        args.q_position = s.position;
        args.out = out + int64_t{head} * args.q_len * args.kv_len;
        args.out_stride = args.kv_len;
        kernels.attention_probs_f32({args});
    });
}

}  // namespace fastattn::ops
