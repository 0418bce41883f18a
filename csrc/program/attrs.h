// The attrs of every kind of op, with the names of src/fastattn/graph/kinds/. The variant `Attrs` is the table of
// kinds. program/kinds/ declares the rest of a kind (op_kind.h); program/run_op.cpp and cuda/run_op.cpp run it.
#pragma once
#include <cstdint>
#include <variant>

#include "kernels/kernels.h"

namespace fastattn {

struct OpKind;

enum class Index { kTokenIds, kPositions, kTokenTypeIds };
enum class Gather { kTokens, kWanted, kFirst, kLast };  // which tokens have a row
inline constexpr int kGatherKinds = 4;

struct EmbeddingAttrs {
    static const OpKind kKind;
    Index index = Index::kTokenIds;
    int32_t offset = 0;
};

struct AddAttrs {
    static const OpKind kKind;
};

struct MultiplyAttrs {
    static const OpKind kKind;
};

struct ScaleAttrs {
    static const OpKind kKind;
};

struct LayerNormAttrs {
    static const OpKind kKind;
    float eps = 0.0f;
};

struct RmsNormAttrs {
    static const OpKind kKind;
    float eps = 0.0f;
    int32_t groups = 1;
};

struct RotaryAttrs {
    static const OpKind kKind;
    int32_t n_head = 0, head_dim = 0, dimensions = 0;
    bool interleaved = false;
    Gather rows = Gather::kTokens;
};

struct LinearAttrs {
    static const OpKind kKind;
    Activation activation = Activation::kNone;
    bool has_bias = false, has_residual = false;
};

// Adds the products of the adapters of the step's sequences to the output of a linear.
struct LoraAttrs {
    static const OpKind kKind;
    int32_t target = 0;  // the number that adapters use for this linear
    Gather rows = Gather::kTokens;
};

struct ActivationAttrs {
    static const OpKind kKind;
    Activation activation = Activation::kNone;
    bool rough = false;  // not an attr in Python; see find_rough_activations
};

struct SliceAttrs {
    static const OpKind kKind;
    int32_t offset = 0, width = 0;
};

struct AttentionAttrs {
    static const OpKind kKind;
    bool causal = false;
    int32_t layer = 0, n_head = 0, n_kv_head = 0, head_dim = 0;
    float scale = 0.0f;
    Gather q_rows = Gather::kTokens;
    int32_t window = 0;
    float softcap = 0.0f;  // 0: none
    bool has_bias = false;
    int32_t bias_positions = 0;  // the most positions of a sequence for which the table has biases

    // Of the table: relative positions 1 - bias_positions to 0, or to bias_positions - 1 if not causal.
    int64_t bias_columns() const { return causal ? bias_positions : 2 * int64_t{bias_positions} - 1; }

    // Tables of relative positions (ops::PositionTables). column_positions: as bias_positions.
    bool has_columns = false, has_position_keys = false, has_position_queries = false;
    int32_t n_columns = 0, column_positions = 0;

    // The largest distance for which the table `columns` has a column: of whole blocks, and of sixteen rows after them.
    int64_t column_reach() const { return (int64_t{column_positions} + kBlockLen - 1) / kBlockLen * kBlockLen + 15; }
};

struct AttentionProbsAttrs : AttentionAttrs {
    static const OpKind kKind;
    int32_t first_head = 0, n_maps = 0;  // maps of heads [first_head, first_head + n_maps)
};

struct GatherRowsAttrs {
    static const OpKind kKind;
    Gather which = Gather::kTokens;
};

struct PoolAttrs {
    static const OpKind kKind;
    PoolKind pool = PoolKind::kMean;
};

struct WindowRowsAttrs {
    static const OpKind kKind;
    int32_t size = 1;
    bool inside = false;  // windows start at their row and are moved into the sequence
};

struct FeaturesAttrs {
    static const OpKind kKind;
    int32_t index = 0;
};

struct ConcatAttrs {
    static const OpKind kKind;
};

struct RecurrentAttrs {  // of lstm and gru
    int32_t hidden = 0;
    bool reverse = false, has_state = false, has_bias = false;
};

struct LstmAttrs : RecurrentAttrs {
    static const OpKind kKind;
    int32_t width = 0;  // of the output without cells
    bool has_projection = false, cells = false;
    float cell_clip = 0.0f, projection_clip = 0.0f;  // 0: none
};

struct GruAttrs : RecurrentAttrs {
    static const OpKind kKind;
};

struct SequenceProbsAttrs {
    static const OpKind kKind;
    bool has_weight = false;
};

struct WeightedSumAttrs {
    static const OpKind kKind;
};

struct L2NormalizeAttrs {
    static const OpKind kKind;
    float eps = 0.0f;
};

using Attrs = std::variant<EmbeddingAttrs, AddAttrs, MultiplyAttrs, ScaleAttrs, LayerNormAttrs, RmsNormAttrs,
                           RotaryAttrs, LinearAttrs, LoraAttrs, ActivationAttrs, SliceAttrs, AttentionAttrs,
                           AttentionProbsAttrs, GatherRowsAttrs, PoolAttrs, WindowRowsAttrs, L2NormalizeAttrs,
                           FeaturesAttrs, ConcatAttrs, LstmAttrs, GruAttrs, SequenceProbsAttrs, WeightedSumAttrs>;

}  // namespace fastattn
