#include <algorithm>

#include "ops/attention_positions.h"

namespace fastattn::ops {
namespace {

constexpr int32_t kQueryRows = 96;             // per chunk
constexpr int32_t kPositionedQueryRows = 128;  // per chunk with position tables: whole windows
constexpr int32_t kStoreRows = 256;
constexpr int32_t kChunksOfOneRow = 2;  // per thread: few, so that each chunk reads a long run of memory

struct Piece {
    int32_t sequence, begin, end;  // rows of q, k or v
    int32_t head;
};

// A chunk is (sequence, some rows, head). Each thread takes chunks in ascending order, so a cursor finds the sequence.
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

int64_t head_offset(const AttentionOp& op, int32_t kv_head) {
    return op.block_offset + kv_head * kv_head_layout(op.kv_format, op.head_dim).bytes;
}

// Location of the keys and values of one head: the blocks, and the offset within a block.
struct HeadPlace {
    std::byte* const* blocks;
    int64_t offset;
};

// The output of some heads, from `column` on; two bfloat16 per float if it is rounded.
float* output_at(const AttentionOp& op, int64_t row, int64_t column) {
    if (op.rounded.format == Format::kFloat32) return op.out.row(row) + column;
    return reinterpret_cast<float*>(op.rounded.to.words) + row * quantized_stride(op.rounded.words) + column / 2;
}

// Arguments for query rows of `head`, or for rows that are heads from `head` on.
AttentionArgs head_args(const AttentionOp& op, const SequenceBlocks& s, HeadPlace place, int32_t head, int thread) {
    const bool rounds = op.rounded.format != Format::kFloat32;
    return {.q = nullptr,
            .q_stride = op.q.stride,
            .blocks = place.blocks,
            .offset = place.offset,
            .out = nullptr,
            .out_stride = rounds ? quantized_stride(op.rounded.words) : op.out.stride,
            .scratch = op.scratch[thread],
            .q_len = 0,
            .q_position = 0,
            .kv_len = s.position + s.key_count,
            .head_dim = op.head_dim,
            .causal = op.causal,
            .scale = op.scale,
            .window = op.window,
            .bias = op.bias == nullptr ? nullptr : op.bias + head * op.bias_stride,
            .bias_stride = op.bias_stride,
            .softcap = op.softcap,
            .out_bfloat16 = rounds};
}

// Calls run(begin, end, position) for runs of query rows at consecutive positions.
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

// Stores the keys and values of rows [begin, end) of the step in their blocks.
void store(const KernelTable& kernels, const AttentionOp& op, const SequenceBlocks& s, HeadPlace place, int32_t kv_head,
           int32_t begin, int32_t end) {
    const int64_t column = int64_t{kv_head} * op.head_dim;
    kernels.kv_store[static_cast<int>(op.kv_format)]({.k = op.k.row(begin) + column,
                                                      .v = op.v.row(begin) + column,
                                                      .k_stride = op.k.stride,
                                                      .v_stride = op.v.stride,
                                                      .blocks = place.blocks,
                                                      .offset = place.offset,
                                                      .rows = end - begin,
                                                      .position = s.position + begin - s.token_begin,
                                                      .head_dim = op.head_dim});
}

// Attends with one query row, for all of its heads that belong to KV heads [begin, end).
void attend_heads(const KernelTable& kernels, const AttentionOp& op, const SequenceBlocks& s, int32_t begin,
                  int32_t end, int thread) {
    const int32_t group = op.n_head / op.n_kv_head, head = begin * group;
    AttentionArgs args = head_args(op, s, {s.blocks, head_offset(op, begin)}, head, thread);
    const int64_t column = int64_t{head} * op.head_dim;
    for_runs(op, s, s.q_begin, s.q_end, [&](int32_t row, int32_t, int32_t position) {
        args.q = op.q.row(row) + column;
        args.out = output_at(op, row, column);
        args.q_stride = op.head_dim;
        args.out_stride = args.out_bfloat16 ? op.head_dim / 2 : op.head_dim;
        args.q_len = (end - begin) * group;
        args.q_position = position;
        args.rows_per_head = group;
        kernels.attention[static_cast<int>(op.kv_format)](args);
    });
}

// Calls run(begin, end, position, scores) for runs of query rows at consecutive positions in one window.
template <class F>
void for_positioned_runs(const KernelTable& kernels, const AttentionOp& op, const SequenceBlocks& s, int32_t head,
                         int32_t begin, int32_t end, int thread, const F& run) {
    PositionProducts products(kernels, op, s, head, thread);
    for_runs(op, s, begin, end, [&](int32_t first, int32_t last, int32_t position) {
        while (first < last) {
            const int32_t rows = std::min(last - first, kBlockLen - position % kBlockLen);
            run(first, first + rows, position, products.of(first, first + rows, position));
            first += rows, position += rows;
        }
    });
}

// Attends with query rows [begin, end) of one head.
void attend(const KernelTable& kernels, const AttentionOp& op, const SequenceBlocks& s, HeadPlace place, int32_t head,
            int32_t begin, int32_t end, int thread) {
    AttentionArgs args = head_args(op, s, place, head, thread);
    const int64_t column = int64_t{head} * op.head_dim;
    const auto run = [&](int32_t first, int32_t last, int32_t position) {
        args.q = op.q.row(first) + column;
        args.out = output_at(op, first, column);
        args.q_len = last - first;
        args.q_position = position;
        kernels.attention[static_cast<int>(op.kv_format)](args);
    };
    if (op.positions.columns == 0) return for_runs(op, s, begin, end, run);
    for_positioned_runs(kernels, op, s, head, begin, end, thread,
                        [&](int32_t first, int32_t last, int32_t position, const PositionScores& scores) {
                            args.positions = &scores;
                            run(first, last, position);
                        });
}

// One thread computes a whole KV head of a sequence.
void attention_by_heads(Team& team, const KernelTable& kernels, const AttentionOp& op) {
    const int32_t group = op.n_head / op.n_kv_head;
    team.for_chunks(int64_t{op.n_sequences} * op.n_kv_head, [&](int64_t chunk) {
        const SequenceBlocks& s = op.sequences[chunk / op.n_kv_head];
        const auto kv_head = static_cast<int32_t>(chunk % op.n_kv_head);
        const HeadPlace place = op.thread_blocks ? HeadPlace{op.thread_blocks[team.index()], 0}
                                                 : HeadPlace{s.blocks, head_offset(op, kv_head)};
        if (s.token_end > s.token_begin) store(kernels, op, s, place, kv_head, s.token_begin, s.token_end);
        for (int32_t head = kv_head * group; head < (kv_head + 1) * group; ++head)
            attend(kernels, op, s, place, head, s.q_begin, s.q_end, team.index());
    });
}

// At most one query row per sequence, as in a decode step. A thread takes several heads of a sequence, whose parts of a
// block are contiguous.
void attention_of_one_row(Team& team, const KernelTable& kernels, const AttentionOp& op) {
    const int64_t heads = int64_t{op.n_sequences} * op.n_kv_head;
    const auto span =
        static_cast<int32_t>(std::clamp<int64_t>(heads / (int64_t{kChunksOfOneRow} * team.size()), 1, op.n_kv_head));
    const int32_t spans = (op.n_kv_head + span - 1) / span;
    team.for_chunks(int64_t{op.n_sequences} * spans, [&](int64_t chunk) {
        const SequenceBlocks& s = op.sequences[chunk / spans];
        const auto begin = static_cast<int32_t>(chunk % spans) * span, end = std::min(begin + span, op.n_kv_head);
        if (s.token_end > s.token_begin)
            for (int32_t head = begin; head < end; ++head)
                store(kernels, op, s, {s.blocks, head_offset(op, head)}, head, s.token_begin, s.token_end);
        attend_heads(kernels, op, s, begin, end, team.index());
    });
}

void kv_store(Team& team, const KernelTable& kernels, const AttentionOp& op) {
    Pieces pieces(
        op, op.n_kv_head, kStoreRows, [](const SequenceBlocks& s) { return s.token_begin; },
        [](const SequenceBlocks& s) { return s.token_end; });
    team.for_chunks(pieces.count(), [&](int64_t chunk) {
        const Piece piece = pieces.at(chunk);
        const SequenceBlocks& s = op.sequences[piece.sequence];
        store(kernels, op, s, {s.blocks, head_offset(op, piece.head)}, piece.head, piece.begin, piece.end);
    });
}

void attention_by_rows(Team& team, const KernelTable& kernels, const AttentionOp& op) {
    kv_store(team, kernels, op);
    team.barrier();
    const int32_t rows = op.positions.columns > 0 ? kPositionedQueryRows : kQueryRows;
    Pieces pieces(
        op, op.n_head, rows, [](const SequenceBlocks& s) { return s.q_begin; },
        [](const SequenceBlocks& s) { return s.q_end; });
    team.for_chunks(pieces.count(), [&](int64_t chunk) {
        const Piece piece = pieces.at(chunk);
        const SequenceBlocks& s = op.sequences[piece.sequence];
        const HeadPlace place{s.blocks, head_offset(op, piece.head / (op.n_head / op.n_kv_head))};
        attend(kernels, op, s, place, piece.head, piece.begin, piece.end, team.index());
    });
}

}  // namespace

void attention(Team& team, const KernelTable& kernels, const AttentionOp& op) {
    const auto one_row = [](const SequenceBlocks& s) {
        return s.q_end - s.q_begin <= 1 && s.token_end - s.token_begin <= kQueryRows;
    };
    if (op.thread_blocks == nullptr && std::all_of(op.sequences, op.sequences + op.n_sequences, one_row))
        return attention_of_one_row(team, kernels, op);
    bool all_short = op.n_head == op.n_kv_head;  // no head of a sequence can be split further
    for (int32_t i = 0; i < op.n_sequences && all_short; ++i) {
        const SequenceBlocks& s = op.sequences[i];
        all_short = s.q_end - s.q_begin <= kQueryRows && s.token_end - s.token_begin <= kStoreRows;
    }
    // Four chunks per thread even out the cost of heads of unequal length.
    if (all_short || int64_t{op.n_sequences} * op.n_kv_head >= int64_t{4} * team.size())
        attention_by_heads(team, kernels, op);
    else
        attention_by_rows(team, kernels, op);
}

void store_memory(Team& team, const KernelTable& kernels, const AttentionOp& op) {
    kv_store(team, kernels, op);
}

void attention_probs(Team& team, const KernelTable& kernels, const AttentionOp& op) {
    kv_store(team, kernels, op);
    team.barrier();
    team.for_chunks(int64_t{op.n_sequences} * op.n_maps, [&](int64_t chunk) {
        const auto sequence = static_cast<int32_t>(chunk / op.n_maps);
        const auto map = static_cast<int32_t>(chunk % op.n_maps);
        const int32_t head = op.first_head + map;
        float* out = op.probs;
        for (int32_t i = 0; i < sequence; ++i) {
            const SequenceBlocks& before = op.sequences[i];
            out += int64_t{op.n_maps} * (before.q_end - before.q_begin) *
                   (before.position + before.token_end - before.token_begin);
        }
        const SequenceBlocks& s = op.sequences[sequence];
        const HeadPlace place{s.blocks, head_offset(op, head / (op.n_head / op.n_kv_head))};
        AttentionArgs args = head_args(op, s, place, head, team.index());
        out += int64_t{map} * (s.q_end - s.q_begin) * args.kv_len;
        args.out_stride = args.kv_len;
        const auto run = [&](int32_t first, int32_t last, int32_t position) {
            args.q = op.q.row(first) + int64_t{head} * op.head_dim;
            args.q_len = last - first;
            args.q_position = position;
            args.out = out + int64_t{first - s.q_begin} * args.kv_len;
            kernels.attention_probs[static_cast<int>(op.kv_format)](args);
        };
        if (op.positions.columns == 0) {
            if (s.q_end > s.q_begin) run(s.q_begin, s.q_end, s.position);
            return;
        }
        for_positioned_runs(kernels, op, s, head, s.q_begin, s.q_end, team.index(),
                            [&](int32_t first, int32_t last, int32_t position, const PositionScores& scores) {
                                args.positions = &scores;
                                run(first, last, position);
                            });
    });
}

}  // namespace fastattn::ops
