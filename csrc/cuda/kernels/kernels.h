// What the CUDA executor can launch: one struct of arguments and one function for each operation. Plain C++, so that
// the host side needs no CUDA header. Every pointer is to device memory unless stated otherwise.
//
// Kernels read what changes from step to step (numbers of rows, lengths, positions, pages) from device memory. A struct
// has only what stays the same: pointers, widths and the upper bounds that determine grid sizes. So a captured graph is
// replayed with new inputs by writing them to the same places. Strides are in elements.
//
// Alignment: rows of 16-bit types and of KV pages start at multiples of 16 bytes, and so do their strides
// (row_elements). Float32 rows may start at any float (a slice is a view). Rows and strides at multiples of 16 bytes
// are read faster.
#pragma once
#include <cstddef>
#include <cstdint>

#include "kernels/kernels.h"
#include "sampling/draw_math.h"

struct CUstream_st;  // the type that cudaStream_t points to

namespace fastattn::cuda {

// In the emulation, a launch passes its work to submit() of native_tests/emulated_stream.h, so that the executor's
// graphs can be captured and replayed there, too.
using Stream = CUstream_st*;

// Types of rows, weights and KV pages in device memory. tf32 is not a type: it is how cuBLASLt may multiply float32.
enum class Type : int32_t { kFloat32, kBfloat16, kFloat16 };
FA_ANYWHERE int64_t bytes_of(Type type) {
    return type == Type::kFloat32 ? 4 : 2;
}
// Width of a row of 16-bit elements or of a KV page: whole units of 16 bytes in every type.
FA_ANYWHERE int64_t row_elements(int64_t width) {
    return (width + 7) / 8 * 8;
}

// `count` rows (if null: `most`), but at most `most`.
struct Rows {
    const int32_t* count = nullptr;
    int32_t most = 0;
};

// Where an op writes its rows: as float32, rounded once for the next linear, or both. In rounded rows the elements
// between width and row_elements(width) become 0.
struct Output {
    float* data = nullptr;  // or null
    int64_t stride = 0;
    void* rounded = nullptr;  // or null
    int64_t rounded_stride = 0;
    Type type = Type::kBfloat16;  // of `rounded`
};

// What most ops on rows have: the rows that they read, and where they write their own.
struct RowArgs {
    const float* x;  // [rows, width]
    int64_t x_stride;
    Rows rows;
    int32_t width;
    Output out;
};

// Row i of out is row index[i] + offset of a table.
struct EmbeddingArgs {
    const void* table;  // [., width] of `type`
    Type type;
    int64_t stride;
    const int32_t* index;  // [rows]; null: all 0
    int32_t offset;
    Rows rows;
    int32_t width;
    float* out;  // [rows, width]
    int64_t out_stride;
};
void launch_embedding(const EmbeddingArgs& args, Stream stream);

// Two values of one shape.
struct PairArgs {
    const float* a;  // [rows, width]
    int64_t a_stride;
    const float* b;  // [rows, width]
    int64_t b_stride;
    Rows rows;
    int32_t width;
    Output out;
};
void launch_add(const PairArgs& args, Stream stream);
void launch_multiply(const PairArgs& args, Stream stream);

// The sums are in the CPU's order, and so the bits are the CPU's (docs/numerics.md).
struct LayerNormArgs {
    RowArgs io;           // out.data may be x
    const float* weight;  // [width] or null (ones)
    const float* bias;    // [width] or null (zeros)
    float eps;
};
void launch_layer_norm(const LayerNormArgs& args, Stream stream);

// x / sqrt(mean(x^2) + eps) * weight, for each of the equal parts of a row, with the CPU's bits.
struct RmsNormArgs {
    RowArgs io;           // out.data may be x
    const float* weight;  // [width / groups]
    float eps;
    int32_t groups;
};
void launch_rms_norm(const RmsNormArgs& args, Stream stream);

// Rotates the pairs (i, i + dimensions / 2) or, interleaved, (2 i, 2 i + 1) of each head by an angle of the row's
// position, as RotaryF32Args of kernels/kernels.h says. Row i is token tokens[i] of the step (if null: token i).
struct RotaryArgs {
    const float* x;  // [rows, n_head * head_dim]
    int64_t x_stride;
    const float* table;  // [., dimensions]
    int64_t table_stride;
    const int32_t* positions;  // of the step's tokens
    const int32_t* tokens;     // [rows] or null; below 0 for the row of an empty sequence, which is 0
    Rows rows;
    int32_t n_head, head_dim, dimensions;
    bool interleaved;
    Output out;  // out.data may be x
};
void launch_rotary(const RotaryArgs& args, Stream stream);

// Rounds rows of float32 to a 16-bit type, to nearest even. out.data is null.
void launch_round(const RowArgs& args, Stream stream);

// What a linear does with its product: out = residual + activation(product + bias).
struct Epilogue {
    const float* bias;      // [n] or null
    const float* residual;  // [rows, n] or null; may be out.data
    int64_t residual_stride;
    Activation activation;
    bool rough = false;  // use the approximate gelus, for formats that round
    Rows rows;
    int32_t n;
    Output out;
};

// A linear without a library: its product is x @ weight.T. Float32: the CPU's order and bits. 16-bit types:
// tensor cores, sums over k in order. Either way the order is the same for every number of rows. Designed for
// correctness: cuBLASLt is faster for many rows.
struct LinearArgs {
    const void* x;  // [rows, k] of `type`
    int64_t x_stride;
    const void* weight;  // [n, k] of `type`; in 16 bits zero between k and row_elements(k), like x
    int64_t weight_stride;
    Type type;
    int32_t k;
    Epilogue epilogue;
};
void launch_linear(const LinearArgs& args, Stream stream);

// The rest of a linear, after something else wrote its product x @ weight.T.
struct EpilogueArgs {
    const float* product;  // [rows, n]; may be out.data
    int64_t product_stride;
    Epilogue epilogue;
};
void launch_epilogue(const EpilogueArgs& args, Stream stream);

struct ActivationArgs {
    RowArgs io;
    Activation activation;
    bool rough = false;
};
void launch_activation(const ActivationArgs& args, Stream stream);

// Row i of out is row index[i] of x, or zeros if index[i] < 0: the first or last row of an empty sequence.
struct GatherArgs {
    RowArgs io;            // x: [., width]
    const int32_t* index;  // [rows]
};
void launch_gather(const GatherArgs& args, Stream stream);

// One row per sequence, from its tokens cu_seqlens[s] to cu_seqlens[s + 1] in order; zeros if it has none.
struct PoolArgs {
    RowArgs io;                 // x: [tokens, width]; rows: one per sequence
    const int32_t* cu_seqlens;  // [sequences + 1]
    PoolKind kind;
};
void launch_pool(const PoolArgs& args, Stream stream);

// x / max(norm(x), eps)
struct L2NormalizeArgs {
    RowArgs io;
    float eps;
};
void launch_l2_normalize(const L2NormalizeArgs& args, Stream stream);

// Keys and values are in pages of kBlockLen positions. For every layer and every KV head, a page has keys [kBlockLen,
// row_elements(head_dim)], then values of the same shape, in one of the types.
FA_ANYWHERE int64_t kv_head_bytes(Type type, int32_t head_dim) {
    return 2 * kBlockLen * row_elements(head_dim) * bytes_of(type);
}
FA_ANYWHERE int64_t kv_layer_bytes(Type type, int32_t n_kv_head, int32_t head_dim) {
    return n_kv_head * kv_head_bytes(type, head_dim);
}

// The pages of the sequences of a step, for one layer. A step without caches has its own pages.
struct KvPages {
    // [sequences, table_stride]: the page of positions 64 j to 64 j + 63 of each sequence, at a multiple of 16 bytes.
    std::byte* const* table;
    int64_t table_stride;  // at least the pages of the longest possible sequence
    int64_t layer_offset;  // bytes, of the layer in a page
    Type type;
    int32_t n_kv_head, head_dim;
};

// Tokens cu_seqlens[s] to cu_seqlens[s + 1] of the step belong to sequence s and are at its positions from start[s] on.
// Keys and values before start[s] are already in the pages.
struct Sequences {
    const int32_t* cu_seqlens;  // [sequences + 1]
    const int32_t* start;       // [sequences]; null: all 0
    Rows rows;                  // number of sequences
    int32_t most_positions;     // upper bound of the length of a sequence, including the step
};

// Stores keys and values of the step's tokens in their pages.
struct KvStoreArgs {
    const float* k;  // [tokens, n_kv_head * head_dim]
    int64_t k_stride;
    const float* v;  // [tokens, n_kv_head * head_dim]
    int64_t v_stride;
    Rows tokens;
    Sequences sequences;
    KvPages pages;
};
void launch_kv_store(const KvStoreArgs& args, Stream stream);

// What depends on the positions of a query and a key.
struct Relative {
    bool causal;
    int32_t window = 0;  // a query at p sees position j only if |p - j| < window; 0: no window
    // bias[j - p] of head 0 is added to the scaled score. Null: no bias. bias_stride: floats between heads.
    const float* bias = nullptr;
    int64_t bias_stride = 0;
};

// Softmax attention of query rows over the pages of their sequences, which must already have the step's keys and
// values. Query rows q_begin[s] to q_begin[s + 1] belong to sequence s. Row i is token query_tokens[i] of the step (if
// null: token i). With causal it sees positions up to its token's own. A row that sees nothing is 0. Rows that belong
// to no sequence are not written.
//
// The arithmetic is that of pages.type. Blocks of 64 positions are reduced independently and merged into m, l and O in
// order, as on the CPU (docs/design/0003-kv-blocks.md). So both kernels below give the same bits, for any chunks and
// any batch. Float32 has the CPU's bits. In 16 bits a NaN or an infinity in a value reaches all rows that see any of
// its block's 64 positions (0 * NaN is NaN).
struct AttentionArgs {
    const float* q;  // [rows, n_head * head_dim]
    int64_t q_stride;
    Rows rows;                    // of q
    const int32_t* q_begin;       // [sequences + 1]; cu_seqlens if q has one row per token
    const int32_t* query_tokens;  // [rows] or null
    Sequences sequences;
    KvPages pages;
    int32_t n_head;  // a multiple of pages.n_kv_head
    Relative relative;
    float scale;
    Output out;          // [rows, n_head * head_dim]
    float* partials;     // decode: decode_partial_floats
    int32_t most_q_len;  // prefill: upper bound of the query rows of a sequence; decode: 1
};
void launch_attention_prefill(const AttentionArgs& args, Stream stream);

// For steps in which every sequence has at most one query row: blocks are spread over the device, then merged.
void launch_attention_decode(const AttentionArgs& args, Stream stream);
FA_ANYWHERE int64_t decode_partial_floats(int64_t most_rows, int64_t n_head, int64_t most_positions, int64_t head_dim) {
    return most_rows * n_head * ((most_positions + kBlockLen - 1) / kBlockLen) * (head_dim + 2);
}

// Probabilities of the same attention, for attention maps: simple and slow, in float32 arithmetic of the pages' keys.
// Sequence s has [n_maps, q_len, kv_len] floats from probs + offsets[s] on, kv_len = start + tokens: those of the heads
// [first_head, first_head + n_maps).
struct AttentionProbsArgs {
    const float* q;  // [tokens, n_head * head_dim]
    int64_t q_stride;
    Rows tokens;
    Sequences sequences;
    KvPages pages;
    int32_t n_head, first_head, n_maps;
    Relative relative;
    float scale;
    float* probs;
    const int64_t* offsets;  // [sequences]
};
void launch_attention_probs(const AttentionProbsArgs& args, Stream stream);

// The highest logit of each row; ties go to the lowest id. The id is -1 unless the status is kFine.
struct ArgmaxArgs {
    const float* logits;  // [rows, vocab]
    int64_t logits_stride;
    Rows rows;
    int32_t vocab;
    int32_t* ids;     // [rows]
    int32_t* status;  // [rows], SampleStatus
};
void launch_argmax(const ArgmaxArgs& args, Stream stream);

// Draws a token for each row by the rules of csrc/sampling/sampler.h and draw.h, with the CPU's bits: the same logits
// give the same ids and log-probabilities.
struct SampleRowsArgs {
    float* logits;  // [rows, vocab]; changed
    int64_t logits_stride;
    Rows rows;
    int32_t vocab;
    const SampleParams* params;      // [rows]
    const int32_t* histories;        // [rows, history_stride]: ids before the token, for the penalty; or null
    const int32_t* history_lengths;  // [rows]
    int64_t history_stride;
    const int32_t* suppressed;  // [n_suppressed]: ids that count as -inf if suppress[row] > 0
    int32_t n_suppressed;
    const int32_t* suppress;  // [rows], or null for none
    float* scratch;           // sample_scratch_floats
    int32_t* ids;             // [rows]
    float* logprobs;          // [rows], of the ids over the logits without penalty and temperature; or null
    int32_t* status;          // [rows], SampleStatus
};
void launch_sample(const SampleRowsArgs& args, Stream stream);
FA_ANYWHERE int64_t sample_scratch_floats(int64_t most_rows, int64_t vocab) {
    return 2 * most_rows * ((vocab + 15) / 16 * 16);
}

}  // namespace fastattn::cuda
