// The table of single-thread kernels that every target fills (kernel_table.cpp). All targets share this header, so it
// has only plain structs and pointers and must not define any function. Strides and lengths are in elements. Unless
// stated otherwise, an output may be the same buffer as an input, row by row.
#pragma once
#include <cstddef>
#include <cstdint>

#include "kernels/formats.h"
#include "kernels/kv_layout.h"

namespace fastattn {

enum class Activation : int32_t { kNone, kGeluErf, kGeluTanh, kRelu, kTanh, kSilu, kSigmoid };
enum class PoolKind : int32_t { kMean, kMax, kMeanSqrtLen };

// c[i, j] = residual[i, j] + activation(bias[j] + sum over k of a[i, k] * b[k, j]), for rows [0, m) and the columns of
// panels [panel_begin, panel_end). The arithmetic is the same for every m. float32 sums over k in order, and
// bfloat16 in the order of docs/numerics.md (products are added in float32). int8 and int4 sums are exact, and then
// multiplied by a_scales[i] * scales[j].
struct LinearArgs {
    const void* a;          // [m, words]: floats, or the output of KernelTable::quantize
    int64_t a_stride;       // words
    const float* a_scales;  // int8, int4: [m]
    const void* panels;     // [ceil(n / 64), 64 / strip, words, strip] words (int4: groups); zero-padded
    const float* scales;    // int8, int4: [n], padded to whole panels
    const int32_t* sums;    // int8, int4: [n], sums of the weights over k, padded like scales
    const float* bias;      // [n] or null
    const float* residual;  // [m, n] or null; may be the memory of c
    int64_t residual_stride;
    float* c;          // [m, columns of the panels]: the first one is that of panel_begin; bfloat16 if c_bfloat16
    int64_t c_stride;  // floats
    float* scratch;    // kLinearScratch floats, owned by the calling thread
    const void* next_panel = nullptr;  // a panel to prefetch meanwhile, or null
    int32_t m, words, n, panel_begin, panel_end;
    Activation activation;
    bool c_stream = false;    // a hint: c is larger than the caches, and whole cache lines of it are written
    bool c_bfloat16 = false;  // only if this linear and the one that reads c are bfloat16; n % 16 == 0
};
inline constexpr int kLinearRowBlock = 192;  // rows whose partial sums are in scratch
inline constexpr int kInt4Block = 128;       // words of an int4 panel that are unpacked at a time
inline constexpr int kUnpackedWords = 2048;  // the same on AMX tiles for many rows
inline constexpr int64_t kLinearScratch = int64_t{kLinearRowBlock + kUnpackedWords} * kPanelWidth;  // floats

// Rows of activations (or weights) in the format of a linear. int8 (and int4, whose activations are int8): one scale
// per row, max |x| / 127, and round(x / scale) + offset. A row with NaN or infinity gets a NaN scale and zeros.
struct QuantizeArgs {
    const float* x;  // [rows, n]
    int64_t x_stride;
    void* out;           // [rows, words], zero after n
    int64_t out_stride;  // words; a multiple of 16; all of them may be written
    float* scales;       // int8: [rows]
    int32_t rows, n, words;
    int32_t offset;  // int8: KernelTable::int8_offset for the `a` of a linear, 0 for weights
};

// Packs up to sixteen columns of weights as adjacent columns of a panel (layout: formats.h), zero after k. int8 and
// int4: one scale per column, max |x| / 127 and max |x| / 120. A column with NaN or infinity gets a NaN scale and
// zeros.
struct PackArgs {
    const float* x;    // [k, n]
    int64_t x_stride;  // between rows of k
    void* panel;       // [64 / strip, words, strip] words (int4: groups)
    float* scales;     // int8, int4: [n]
    int32_t* sums;     // int8, int4: [n], sums of the integers over k
    int32_t k, n, words;
    int32_t lane;  // the panel column of the first column; lane % 16 + n <= 16
};
inline constexpr int kMostInt4Scale = 15;  // of a group; -8 * 15 fits in int8
inline constexpr int kInt4Reach = 2;       // scales tried on either side of the one that fits the highest magnitude

struct LayerNormF32Args {
    const float* x;  // [rows, n]
    int64_t x_stride;
    const float* weight;  // [n] or null (ones)
    const float* bias;    // [n] or null (zeros)
    float* out;           // [rows, n]
    int64_t out_stride;
    int32_t rows, n;
    float eps;
};

// out = x / sqrt(mean(x^2) + eps) * weight, for each of the `groups` parts of n elements of a row (queries and keys are
// normalized by head).
struct RmsNormF32Args {
    const float* x;  // [rows, groups * n]
    int64_t x_stride;
    const float* weight;  // [n]
    float* out;           // [rows, groups * n]
    int64_t out_stride;
    int32_t rows, groups, n;
    float eps;
};

// out = y + (x down^T) up: a LoRA adapter.
struct LoraF32Args {
    const float* x;  // [rows, k]
    int64_t x_stride;
    const float* down;  // [rank, k]
    const float* up;    // [rank, n]
    const float* y;     // [rows, n]; may be the memory of out
    int64_t y_stride;
    float* out;  // [rows, n]
    int64_t out_stride;
    float* inner;  // room for [rows, rank]
    int32_t rows, rank, k, n;
};

// Rotates pairs of elements of each head by an angle of the row's position. The pairs are (i, i + dimensions / 2) or,
// interleaved, (2 i, 2 i + 1). The table has the cosine of a pair's angle where the head has the pair's first element,
// and the sine where it has the second. Elements of the head from `dimensions` on do not change.
struct RotaryF32Args {
    const float* x;  // [rows, n_head * head_dim]
    int64_t x_stride;
    const float* table;        // [., dimensions]
    const int32_t* positions;  // [rows], rows of the table
    float* out;                // [rows, n_head * head_dim]
    int64_t out_stride;
    int32_t rows, n_head, head_dim;
    int32_t dimensions;  // even, at most head_dim
    bool interleaved;
};

// Stores rows of keys and values of one head in KV blocks; position p goes to block p / 64. Writes nothing else, not
// even the rest of a word, so that threads may store neighboring positions.
struct KvStoreArgs {
    const float* k;  // [rows, head_dim]
    const float* v;  // [rows, head_dim]
    int64_t k_stride, v_stride;
    std::byte* const* blocks;
    int64_t offset = 0;  // bytes: the head's part starts at blocks[b] + offset
    int32_t rows, position, head_dim;
};

// Scores of relative positions, as in DeBERTa. Pairs of positions at the same or similar distances share a column. All
// pointers may be read up to kLanes floats before and after what they have.
struct PositionScores {
    // columns[j - p] is the column of a key at j for a query at p. It is an integer, and that of j + 1 - p is the same
    // or the next one. There is a column for all j - p of the blocks and rows, and for kLanes more at both ends.
    const float* columns;
    // The score of row r in column c is query[r * query_stride + c - query_first]. Null: none.
    const float* query;
    int64_t query_stride;
    int32_t query_first;
    // The score of the key at j in column c is key[j * key_stride + c - key_first[j / kBlockLen]]. Null: none.
    const float* key;
    int64_t key_stride;
    const int32_t* key_first;
};

// Softmax attention of some query rows of one head over the KV blocks of one sequence. Each block is reduced on its own
// (its own maximum, sum and weighted values) and merged into m, l and O in block order, so that any split of the work
// gives the same bits. Row r is at position q_position + r; with causal it sees positions <= its own.
//
// With rows_per_head, rows are not positions but the query heads of one position, q_position. Each KV head has
// rows_per_head of them, and the next KV head's part of a block follows. So a decode step reads blocks as one long
// stream.
//
// attention_probs writes the probabilities [q_len, kv_len] of the same attention to `out` instead (attention maps).
struct AttentionArgs {
    const float* q;  // [q_len, head_dim]
    int64_t q_stride;
    const std::byte* const* blocks;  // as in KvStoreArgs
    int64_t offset = 0;
    const float* mask = nullptr;  // [q_len, kv_len], added to the scaled scores, or null; float32 only
    int64_t mask_stride = 0;
    float* out;  // [q_len, head_dim]; a row that sees nothing is 0; bfloat16 if out_bfloat16
    int64_t out_stride;
    float* scratch;  // kAttentionScratch floats, owned by the calling thread
    int32_t q_len, q_position, kv_len, head_dim;
    int32_t rows_per_head = 0;  // 0: rows are positions
    bool causal;
    float scale;         // positive except in float32
    int32_t window = 0;  // a query at p sees position j only if |p - j| < window; 0: no window
    // bias[j - p] is added to the scaled score of position j for a query at p. Null: no bias. If rows are heads, that
    // of row r starts r * bias_stride floats later.
    const float* bias = nullptr;
    int64_t bias_stride = 0;
    // The sum of its two scores, times `scale`, is added to a score. Only if rows are positions, without mask and bias.
    const PositionScores* positions = nullptr;
    // A scaled score s becomes softcap * tanh(s / softcap) (Gemma 2). 0: it does not change. Only without mask, bias
    // and positions.
    float softcap = 0.0f;
    bool out_bfloat16 = false;  // not for attention_probs; head_dim % 16 == 0; out_stride is in floats
};
inline constexpr int kAttentionRows = 16;  // query rows that visit a block together
inline constexpr int64_t kAttentionScratch =
    kAttentionRows * (kBlockLen + 2 * kMaxHeadDim + kMaxHeadDim / 2) + 16 * 16;  // floats

struct SoftmaxF32Args {
    const float* x;  // [rows, n]
    int64_t x_stride;
    float* out;  // [rows, n]; x may be out
    int64_t out_stride;
    int32_t rows, n;
    bool log;  // log-softmax
};

struct ElementwiseF32Args {
    const float* x;            // [n]
    const float* y = nullptr;  // [n], for add and multiply
    float* out;                // [n]
    int64_t n;
    Activation activation = Activation::kNone;
    bool rough = false;  // use the approximate gelus, for formats that round
};

struct PoolF32Args {
    const float* x;  // [rows, n], the rows of one sequence
    int64_t x_stride;
    float* out;  // [n]; zeros for rows = 0
    int32_t rows, n;
    PoolKind kind;
};

struct RowsF32Args {  // l2_normalize: out = x / max(norm(x), eps)
    const float* x;
    int64_t x_stride;
    float* out;
    int64_t out_stride;
    int32_t rows, n;
    float eps;
};

// One step of an LSTM or GRU cell, for one sequence. The gates are x + sums, in the order of torch: input, forget, cell
// and output (lstm), or reset, update and new (gru). x: from the input, with its bias; sums: from the last output, with
// its bias.
struct CellF32Args {
    const float* x;     // lstm: [4, n], gru: [3, n]
    const float* sums;  // as x
    float* state;       // [n], updated: the cell (lstm), or the last output (gru)
    float* out;         // [n]
    int32_t n;
    float clip = 0.0f;  // lstm: the cell is clipped to [-clip, clip]; 0: not at all
};

struct ClipF32Args {
    const float* x;  // [n]
    float* out;      // [n]
    int32_t n;
    float clip;
};

// Scores of the rows of one sequence for one query: sum of weight * tanh(query + key) (Bahdanau), or without a weight
// of query * key (Luong).
struct QueryScoresF32Args {
    const float* query;  // [n]
    const float* keys;   // [rows, n]
    int64_t keys_stride;
    const float* weight;  // [n] or null
    float* out;           // [rows]
    int32_t rows, n;
};

struct WeightedSumF32Args {  // out = sum over r of weights[r] * x[r], in order
    const float* weights;    // [rows]
    int64_t weights_stride;
    const float* x;  // [rows, n]
    int64_t x_stride;
    float* out;  // [n]; zeros for rows = 0
    int32_t rows, n;
};

// The highest value and its first index. The index is -1 if there is a NaN.
struct ArgmaxF32Args {
    const float* x;  // [n]
    int32_t n;
    int32_t* index;
    float* value;
};

// The first index whose value is not below `threshold`, or n. A NaN is not below anything.
struct FindF32Args {
    const float* x;  // [n]
    int32_t n;
    float threshold;
};

// The softmax's sum of e^(x - shift), and its logarithm (0 for a sum of 0, as in log-softmax).
struct ExpSumF32Args {
    const float* x;  // [n]
    float* out;      // [n], e^(x - shift), or null; x may be out
    int32_t n;
    float shift;
    float* sum;
    float* log_sum;
};

// The part of the output that a linear keeps in registers. Chunks of whole tiles are the fastest.
struct TileShape {
    int32_t rows;     // divides kLinearRowBlock
    int32_t columns;  // divides kPanelWidth
    bool many_rows;   // more rows than kLinearRowBlock at once are faster
};

struct KernelTable {
    const char* target;
    int32_t int8_offset;  // added to the int8 activations of this target's linears
    void (*linear[kFormats])(const LinearArgs&);
    TileShape linear_tile[kFormats];
    int32_t strip_columns[kFormats];                  // of packed weights
    void (*quantize[kFormats])(const QuantizeArgs&);  // null for float32; int4: as int8
    void (*pack[kFormats])(const PackArgs&);          // null for float32, whose bits are only moved
    void (*layer_norm_f32)(const LayerNormF32Args&);
    void (*rms_norm_f32)(const RmsNormF32Args&);
    void (*lora_f32)(const LoraF32Args&);
    void (*rotary_f32)(const RotaryF32Args&);
    void (*kv_store[kKvFormats])(const KvStoreArgs&);
    void (*attention[kKvFormats])(const AttentionArgs&);
    void (*attention_probs[kKvFormats])(const AttentionArgs&);
    void (*softmax_f32)(const SoftmaxF32Args&);
    void (*activation_f32)(const ElementwiseF32Args&);
    void (*add_f32)(const ElementwiseF32Args&);
    void (*multiply_f32)(const ElementwiseF32Args&);
    void (*pool_f32)(const PoolF32Args&);
    void (*l2_normalize_f32)(const RowsF32Args&);
    void (*lstm_cell_f32)(const CellF32Args&);
    void (*gru_cell_f32)(const CellF32Args&);
    void (*clip_f32)(const ClipF32Args&);
    void (*query_scores_f32)(const QueryScoresF32Args&);
    void (*weighted_sum_f32)(const WeightedSumF32Args&);
    void (*argmax_f32)(const ArgmaxF32Args&);
    // Independent multiply-adds in the arithmetic of a format (int4: as int8). `measure_dot_ops` is the number of
    // operations per iteration, two per multiply-add.
    float (*measure_dot[kFormats])(int64_t iterations);
    int32_t measure_dot_ops[kFormats];
    int32_t (*find_f32)(const FindF32Args&);
    void (*exp_sum_f32)(const ExpSumF32Args&);
    float (*measure_read)(const float* p, int64_t n);
};

namespace scalar { const KernelTable& kernel_table(); }
namespace avx2 { const KernelTable& kernel_table(); }
namespace avx512 { const KernelTable& kernel_table(); }
namespace avx512_vnni { const KernelTable& kernel_table(); }
namespace avx512_bf16 { const KernelTable& kernel_table(); }
namespace amx { const KernelTable& kernel_table(); }
namespace neon { const KernelTable& kernel_table(); }
namespace neon_dotprod { const KernelTable& kernel_table(); }
namespace neon_i8mm { const KernelTable& kernel_table(); }

}  // namespace fastattn
