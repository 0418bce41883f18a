// The op list that Python traced (src/fastattn/graph/ir.py), validated.
#pragma once
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "kernels/kernels.h"

namespace fastattn {

enum class Rows { kTokens, kWanted, kSequences };
inline constexpr int kRowKinds = 3;

enum class OpKind {
    kEmbedding,
    kAdd,
    kLayerNorm,
    kLinear,
    kActivation,
    kSlice,
    kAttention,
    kAttentionProbs,
    kGatherRows,
    kPool,
    kL2Normalize,
};

enum class Index { kTokenIds, kPositions, kTokenTypeIds };
enum class Gather { kTokens, kWanted, kFirst, kLast };  // which tokens have a row
inline constexpr int kGatherKinds = 4;

struct ValueSpec {
    Rows rows;
    int32_t width;
};

// One op. Only the fields of its kind are set.
struct OpSpec {
    OpKind kind{};
    std::vector<int32_t> inputs;
    int32_t output = -1;
    std::vector<int32_t> weights;  // indices into ProgramSpec::weights
    Activation activation = Activation::kNone;
    Index index = Index::kTokenIds;
    int32_t index_offset = 0;
    Gather gather = Gather::kTokens;  // gather_rows: which; attention: the rows of q
    PoolKind pool = PoolKind::kMean;
    bool rough = false;  // activation of the output of a linear in a format that rounds; see find_rough_activations
    bool has_bias = false, has_residual = false, causal = false;
    int32_t offset = 0;  // slice
    int32_t layer = 0, n_head = 0, n_kv_head = 0, head_dim = 0;
    float eps = 0.0f, scale = 0.0f;
};

struct ProgramSpec {
    std::vector<ValueSpec> values;
    std::vector<OpSpec> ops;
    std::vector<std::string> weights;
    std::vector<int32_t> outputs;
    int32_t logits = -1;  // the output that tokens are drawn from, if any
    int32_t n_layer = 0, n_kv_head = 0, head_dim = 0, max_positions = 0;
    Format kv_format = Format::kFloat32;
};

[[noreturn]] void bad_spec(const std::string& what);  // throws Error(kConfig)
void check_spec(const ProgramSpec& spec);             // throws Error(kConfig) with the name of the op

// Sets OpSpec::rough. rounds(weight): whether a linear of this weight rounds its operands.
void find_rough_activations(ProgramSpec& spec, const std::function<bool(int32_t weight)>& rounds);

}  // namespace fastattn
