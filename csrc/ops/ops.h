// What the ops of a Program do across the threads of a region. An op checks nothing (the executor has) and knows no
// instruction set; every thread of the region calls it, and a barrier follows before anyone reads its output.
#pragma once
#include <cstddef>
#include <cstdint>

#include "kernels/kernels.h"
#include "runtime/thread_pool.h"

namespace fastattn {

// A matrix in the workspace or in the caller's memory.
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
    const std::byte* panels = nullptr;  // null: no matrix
    const float* scales = nullptr;      // int8, int4
    const int32_t* sums = nullptr;
    int32_t words = 0;  // along k
    int64_t panel_bytes = 0, count = 0;

    const std::byte* at(int64_t panel) const { return panel < count ? panels + panel * panel_bytes : nullptr; }
};

// Words along k of a matrix with k columns.
int32_t words_of(Format format, int64_t k);
int64_t panel_bytes_of(Format format, int64_t k);

// Activations in the format of a linear: rows of `stride` words, and their scales.
struct Quantized {
    int32_t* words = nullptr;
    float* scales = nullptr;
};
inline int64_t quantized_stride(int64_t words) {
    return (words + 15) / 16 * 16;
}

// A copy of an op's output, rounded for the linear that reads it next.
struct Rounded {
    Format format = Format::kFloat32;  // float32: nobody wants one
    int32_t words = 0;                 // along the output's width
    Quantized to;
};

// Takes the output of a linear tile by tile, each on the thread that computed it while it is in that thread's cache. Of
// one row a thread's tiles come in rising order.
class LinearSink {
public:
    static constexpr int64_t kTileFloats = 16384;
    struct Tile {
        View view;  // may be written to
        int64_t row;
        int32_t column;
    };
    virtual float* room(int thread) = 0;  // kTileFloats for a tile, where the output has no memory
    virtual void take(int thread, const Tile& tile) = 0;

protected:
    ~LinearSink() = default;
};
static_assert(LinearSink::kTileFloats >= kLinearRowBlock * kPanelWidth);

struct LinearOp {
    View x, out;
    Matrix weights;
    Matrix next;        // of the linear that comes after, whose first panels are brought into the cache; may be none
    const float* bias;  // or null
    View residual;      // data null without
    Activation activation;
    Quantized quantized;         // x or room for it, shared by all threads; not for float32
    bool x_rounded = false;      // quantized holds x already, and x.data may be null
    Rounded rounded{};           // bfloat16 with bfloat16 weights; in place of out, whose data may be null then
    float* const* scratch;       // a thread, kScratchFloats
    LinearSink* sink = nullptr;  // with one, out.data may be null
};
void linear(Team& team, const KernelTable& kernels, const LinearOp& op);

// Rows [first, first + rows) of x to where `rounded` says.
void round_rows(const KernelTable& kernels, View x, int64_t first, int64_t rows, const Rounded& rounded);

// `rounded` beside out.
void layer_norm(Team& team, const KernelTable& kernels, View x, View out, const float* weight, const float* bias,
                float eps, const Rounded& rounded);
void add(Team& team, const KernelTable& kernels, View a, View b, View out);
void activation(Team& team, const KernelTable& kernels, View x, View out, Activation kind, bool rough);
void l2_normalize(Team& team, const KernelTable& kernels, View x, View out, float eps);

// Bytes of a KV block that belong to one head.
int64_t kv_head_bytes(Format format, int32_t head_dim);

// One sequence of an attention: its tokens are rows [token_begin, token_end) of k and v, at positions from `position`
// on. Its query rows are [q_begin, q_end) of q; query_tokens, if not null, gives each row's token (row of the step).
struct SequenceBlocks {
    std::byte* const* blocks;
    int32_t token_begin, token_end, position;
    int32_t q_begin, q_end;
};

struct AttentionOp {
    View q, k, v, out;
    const SequenceBlocks* sequences;
    const int32_t* query_tokens;  // of q's rows, or null when q has a row a token
    int32_t n_sequences;
    int32_t n_head, n_kv_head, head_dim;
    Format kv_format;
    int64_t block_offset;  // bytes: of the layer in a block
    bool causal;
    float scale;
    float* const* scratch;
    // A thread's own blocks for the keys and values of one head, when no cache keeps them; else null.
    std::byte* const* const* thread_blocks;
    float* probs;  // attention_probs: the sequences' [n_head, q_len, kv_len] one behind the other, else null
};

// Stores the keys and values of the step, then attends. Where there are heads enough for all threads, one thread does
// both for a head, whose keys and values then stay in its cache; otherwise query rows are split, too, with a barrier
// between.
void attention(Team& team, const KernelTable& kernels, const AttentionOp& op);
void attention_probs(Team& team, const KernelTable& kernels, const AttentionOp& op);

// So few activations are quantized by every thread for itself, which is cheaper than to meet.
inline constexpr int64_t kAloneWords = 4096, kAloneRows = 16;
inline constexpr int64_t kLinearOpScratch = kLinearScratch + kAloneWords + kAloneRows;
inline constexpr int64_t kScratchFloats = kLinearOpScratch > kAttentionScratch ? kLinearOpScratch : kAttentionScratch;

}  // namespace ops
}  // namespace fastattn
