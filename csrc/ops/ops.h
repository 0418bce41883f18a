// The ops of a Program on the threads of a region. An op validates nothing (the executor already did) and does not
// depend on an instruction set. Every thread of the region calls it. A barrier follows before its output is read.
#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "kernels/kernels.h"
#include "runtime/thread_pool.h"

namespace fastattn {

// A matrix [rows, width] in the workspace or in the caller's memory.
struct View {
    float* data = nullptr;
    int64_t rows = 0;
    int64_t stride = 0;  // elements
    int32_t width = 0;

    float* row(int64_t i) const { return data + i * stride; }
};

namespace ops {

// Packed weights: `count` panels of 64 columns.
struct Matrix {
    Format format = Format::kFloat32;
    const std::byte* panels = nullptr;  // [count, words, 64] words (int4: groups); null: no matrix
    const float* scales = nullptr;      // int8, int4: [count * 64]
    const int32_t* sums = nullptr;      // int8, int4: [count * 64]
    int32_t words = 0;                  // along k
    int64_t panel_bytes = 0, count = 0;

    const std::byte* at(int64_t panel) const { return panel < count ? panels + panel * panel_bytes : nullptr; }
};

// Activations in the format of a linear: words [rows, quantized_stride(words)] and scales [rows].
struct Quantized {
    int32_t* words = nullptr;
    float* scales = nullptr;
};
// An odd number of cache lines, so that sixteen rows spread over the sets of a cache.
inline int64_t quantized_stride(int64_t words) {
    return ((words + 15) / 16 | 1) * 16;
}

// A copy of an op's output, rounded for the linear that reads it next.
struct Rounded {
    Format format = Format::kFloat32;  // float32: no copy
    int32_t words = 0;                 // along the output's width
    Quantized to;
};

// Receives the output of a linear tile by tile, on the thread that computed the tile, while it is in that thread's
// cache. For one row, the tiles of a thread come in ascending column order.
class LinearSink {
public:
    static constexpr int64_t kTileFloats = 16384;
    struct Tile {
        View view;  // writable
        int64_t row;
        int32_t column;
    };
    virtual float* room(int thread) = 0;  // kTileFloats for a tile, if the output has no memory
    virtual void take(int thread, const Tile& tile) = 0;

protected:
    ~LinearSink() = default;
};
static_assert(LinearSink::kTileFloats >= kLinearRowBlock * kPanelWidth);

struct LinearOp {
    View x, out;
    Matrix weights;
    Matrix next{};      // of the following linear, whose first panels are prefetched; may be empty
    const float* bias;  // [n] or null
    View residual{};    // data is null without a residual
    Activation activation = Activation::kNone;
    Quantized quantized{};       // x, or room for it; shared by all threads; not for float32
    bool x_rounded = false;      // quantized already holds x, and x.data may be null
    Rounded rounded{};           // bfloat16 with bfloat16 weights; replaces out, whose data may then be null
    float* const* scratch;       // one per thread, kScratchFloats each
    LinearSink* sink = nullptr;  // if set, out.data may be null
};
void linear(Team& team, const KernelTable& kernels, const LinearOp& op);

// The same on the calling thread alone, for 1 to most_alone(op.weights) rows (which may be 0), without sink.
void linear_alone(int thread, const KernelTable& kernels, const LinearOp& op);
int64_t most_alone(const Matrix& weights);

// Of a lora op: rows of a chunk, and the largest rank of an adapter.
inline constexpr int kLoraRows = 32, kMaxLoraRank = 1024;

// Rounds rows [first, first + rows) of x to rounded.to.
void round_rows(const KernelTable& kernels, View x, int64_t first, int64_t rows, const Rounded& rounded);

// Writes `out` and its rounded copy `rounded`.
void layer_norm(Team& team, const KernelTable& kernels, View x, View out, const float* weight, const float* bias,
                float eps, const Rounded& rounded);
void rms_norm(Team& team, const KernelTable& kernels, View x, View out, const float* weight, int32_t groups, float eps,
              const Rounded& rounded);
// kernel: add_f32 or multiply_f32.
void combine(Team& team, void (*kernel)(const ElementwiseF32Args&), View a, View b, View out);

struct RotaryOp {
    View x, out;
    const float* table;        // [., dimensions]
    const int32_t* positions;  // of the rows
    int32_t n_head, head_dim, dimensions;
    bool interleaved;
};
void rotary(Team& team, const KernelTable& kernels, const RotaryOp& op);
void activation(Team& team, const KernelTable& kernels, View x, View out, Activation kind, bool rough);
void l2_normalize(Team& team, const KernelTable& kernels, View x, View out, float eps);

// lstm or gru. Rows of `x` and `out` are tokens, from begins[s] on those of sequence s; without begins, row s is the
// only one of sequence s.
struct RecurrentOp {
    View x, out;
    View state{};  // [n_sequences, width + hidden] (lstm) or [n_sequences, hidden]; data is null: zeros
    Matrix weights;
    const float* bias;    // [x.width] or null
    Matrix projection{};  // may have no panels
    const int32_t* begins;
    const int32_t* order;  // the sequences, the longest first
    int64_t n_sequences;
    int32_t hidden, width;
    bool gru, reverse;
    bool cells = false;  // out has the cell after the output
    float cell_clip = 0.0f, projection_clip = 0.0f;
    Quantized quantized{};  // room for the rounded state
    float* room;            // recurrent_room floats
    float* const* scratch;  // one per thread
};
int64_t recurrent_stride(int64_t width);
int64_t recurrent_room(int64_t n_sequences, int64_t gates, int64_t width, int64_t hidden);
void recurrent(Team& team, const KernelTable& kernels, const RecurrentOp& op);

struct SequenceProbsOp {
    View queries, keys, out;
    const float* weight;    // [keys.width] or null
    const int32_t* begins;  // of the sequences
    float* room;            // one float per row of keys
};
void sequence_probs(Team& team, const KernelTable& kernels, const SequenceProbsOp& op);
void weighted_sum(Team& team, const KernelTable& kernels, View weights, View x, View out, const int32_t* begins);

// One sequence of an attention. Its tokens are rows [token_begin, token_end) of k and v, at positions from `position`
// on. Its query rows are [q_begin, q_end) of q. query_tokens, if not null, gives each row's token (row of the step).
// Only the first key_count of its tokens are attended to.
struct SequenceBlocks {
    std::byte* const* blocks;
    int32_t token_begin, token_end, position;
    int32_t q_begin, q_end;
    int32_t key_count;
};

// Tables of relative positions (see PositionScores). A head's rows of a matrix are `columns` columns, whole panels. The
// scores of a query are its products with the rows of `keys`; those of a key, with the rows of `queries`.
struct PositionTables {
    int32_t columns = 0;  // 0: there are no tables
    const float* column_of =
        nullptr;                   // column_of[j - p], for all positions up to whole blocks, and 15 more at both ends
    Matrix keys{}, queries{};      // [n_head * columns, head_dim]; one of them may have no panels
    float* const* room = nullptr;  // position_room floats per thread
};
// Floats that a thread needs for the tables, for sequences of up to `positions` positions.
int64_t position_room(const PositionTables& tables, int64_t positions);

struct AttentionOp {
    View q, k, v, out;
    const SequenceBlocks* sequences;
    const int32_t* query_tokens;  // of q's rows, or null if q has one row per token
    int32_t n_sequences;
    int32_t n_head, n_kv_head, head_dim;
    Format kv_format;
    int64_t block_offset;  // bytes; offset of the layer in a block
    bool causal;
    float scale;
    float* const* scratch;
    // Each thread's own blocks for the keys and values of one head if there is no cache, else null.
    std::byte* const* const* thread_blocks;
    float* probs = nullptr;  // attention_probs: [n_maps, q_len, kv_len] of each sequence, concatenated; else null
    int32_t first_head = 0, n_maps = 0;  // attention_probs: the heads [first_head, first_head + n_maps)
    int32_t window = 0;
    float softcap = 0.0f;  // 0: none; only without bias and positions
    // bias[j - p] of head 0 is added to the score of position j for a query at p. bias_stride: floats between heads.
    const float* bias = nullptr;
    int64_t bias_stride = 0;
    PositionTables positions{};  // only without caches and bias, and if n_kv_head is n_head
    Rounded rounded{};           // bfloat16, if head_dim % 16 == 0; replaces out, whose data may then be null
};

// Stores the keys and values of the step, then attends. If there are enough heads for all threads, one thread does both
// for a head, so that its keys and values stay in that thread's cache. Otherwise query rows are split too, with a
// barrier in between.
void attention(Team& team, const KernelTable& kernels, const AttentionOp& op);
void attention_probs(Team& team, const KernelTable& kernels, const AttentionOp& op);

// Every thread quantizes up to this many activations for itself, which is cheaper than a barrier.
inline constexpr int64_t kAloneWords = 4096, kAloneRows = 16;
inline constexpr int64_t kLinearOpScratch = kLinearScratch + kAloneWords + kAloneRows;
inline constexpr int64_t kLoraScratch = int64_t{kLoraRows} * kMaxLoraRank;
inline constexpr int64_t kScratchFloats = std::max({kLinearOpScratch, kAttentionScratch, kLoraScratch});

}  // namespace ops
}  // namespace fastattn
