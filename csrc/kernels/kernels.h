// The table of single-thread kernels that every target fills (kernel_table.cpp). Only plain structs and pointers:
// this header is shared between targets, so it must not define any function.
// Strides and lengths are in elements. Unless said otherwise an output may be the same buffer as an input row by row.
#pragma once
#include <cstdint>

namespace fastattn {

inline constexpr int kPanelWidth = 64;  // columns of a packed weight panel
inline constexpr int kBlockLen = 64;    // positions of a KV block

enum class Activation : int32_t { kNone, kGeluErf, kGeluTanh, kRelu, kTanh, kSilu };
enum class PoolKind : int32_t { kMean, kMax, kMeanSqrtLen };

// c[i, j] = residual[i, j] + activation(bias[j] + sum over k, in order, of a[i, k] * b[k, j]); rows [0, m), columns of
// panels [panel_begin, panel_end). Same arithmetic for every m.
struct LinearF32Args {
    const float* a;  // [m, k], row stride a_stride
    int64_t a_stride;
    const float* panels;    // [ceil(n / 64), k, 64], zero-padded
    const float* bias;      // [n] or null
    const float* residual;  // [m, n] or null; may be c
    int64_t residual_stride;
    float* c;  // [m, n], row stride c_stride
    int64_t c_stride;
    float* scratch;           // kLinearScratch floats, owned by the calling thread
    const float* next_panel;  // a panel to bring into the cache meanwhile, or null
    int32_t m, k, n, panel_begin, panel_end;
    Activation activation;
};
inline constexpr int kLinearRowBlock = 192;  // rows whose partial sums wait in scratch
inline constexpr int64_t kLinearScratch = int64_t{kLinearRowBlock} * kPanelWidth;  // floats

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

// Rows of keys and values of one head into KV blocks: position p goes to block p / 64, lane p % 64.
struct KvStoreF32Args {
    const float* k;  // [rows, head_dim]
    const float* v;  // [rows, head_dim]
    int64_t k_stride, v_stride;
    float* const* blocks;  // block b starts at blocks[b]
    int64_t k_offset;      // blocks[b] + k_offset: keys transposed [head_dim, 64]
    int64_t v_offset;      // blocks[b] + v_offset: values [64, head_dim]
    int32_t rows, position, head_dim;
};

// Softmax attention of some query rows of one head over the KV blocks of one sequence. Each block is reduced on its own
// (its own maximum, sum and weighted values), then merged in block order, so that any split of the work gives the same
// bits. Row r sits at position q_position + r; with causal it sees positions <= its own.
struct AttentionF32Args {
    const float* q;  // [q_len, head_dim]
    int64_t q_stride;
    const float* const* blocks;  // as in KvStoreF32Args
    int64_t k_offset, v_offset;
    const float* mask;  // [q_len, kv_len] added to the scaled scores, or null
    int64_t mask_stride;
    float* out;  // [q_len, head_dim]; a row that sees nothing is 0
    int64_t out_stride;
    float* scratch;  // kAttentionScratch floats, owned by the calling thread
    int32_t q_len, q_position, kv_len, head_dim;
    bool causal;
    float scale;
};
inline constexpr int kMaxHeadDim = 256;
inline constexpr int64_t kAttentionScratch = 16 * (kBlockLen + 2 * kMaxHeadDim + 64);  // floats

// probs [q_len, kv_len] of the same attention, for those who ask for attention maps.
struct AttentionProbsF32Args {
    AttentionF32Args attention;  // out and out_stride name probs
};

struct SoftmaxF32Args {
    const float* x;  // [rows, n]
    int64_t x_stride;
    float* out;  // [rows, n]; x may be out
    int64_t out_stride;
    int32_t rows, n;
    bool log;  // log-softmax
};

struct ElementwiseF32Args {
    const float* x;  // [n]
    const float* y;  // [n], for add
    float* out;      // [n]
    int64_t n;
    Activation activation;
};

struct PoolF32Args {
    const float* x;  // [rows, n]; rows of one sequence
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

// Highest value and its first index. A NaN anywhere gives index -1.
struct ArgmaxF32Args {
    const float* x;  // [n]
    int32_t n;
    int32_t* index;
    float* value;
};

// First index whose value is not below `threshold`, n if there is none. A NaN is not below anything.
struct FindF32Args {
    const float* x;  // [n]
    int32_t n;
    float threshold;
};

// sum = the softmax's sum of e^(x - shift), and its logarithm (0 for a sum of 0, as in log-softmax).
struct ExpSumF32Args {
    const float* x;  // [n]
    float* out;      // [n], e^(x - shift), or null; x may be out
    int32_t n;
    float shift;
    float* sum;
    float* log_sum;
};

struct KernelTable {
    const char* target;
    void (*linear_f32)(const LinearF32Args&);
    void (*layer_norm_f32)(const LayerNormF32Args&);
    void (*kv_store_f32)(const KvStoreF32Args&);
    void (*attention_f32)(const AttentionF32Args&);
    void (*attention_probs_f32)(const AttentionProbsF32Args&);
    void (*softmax_f32)(const SoftmaxF32Args&);
    void (*activation_f32)(const ElementwiseF32Args&);
    void (*add_f32)(const ElementwiseF32Args&);
    void (*pool_f32)(const PoolF32Args&);
    void (*l2_normalize_f32)(const RowsF32Args&);
    void (*argmax_f32)(const ArgmaxF32Args&);
    int32_t (*find_f32)(const FindF32Args&);
    void (*exp_sum_f32)(const ExpSumF32Args&);
    float (*measure_fma)(int64_t iterations);  // measure_fma_flops operations an iteration
    float (*measure_read)(const float* p, int64_t n);
    int32_t (*measure_fma_flops)();
};

namespace scalar { const KernelTable& kernel_table(); }
namespace avx2 { const KernelTable& kernel_table(); }
namespace avx512 { const KernelTable& kernel_table(); }
namespace neon { const KernelTable& kernel_table(); }

}  // namespace fastattn
