// The op list that Python traced (src/fastattn/graph/ir.py), validated.
#pragma once
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "kernels/kernels.h"
#include "program/attrs.h"
#include "weights/weight_use.h"

namespace fastattn {

enum class Rows { kTokens, kWanted, kSequences };
inline constexpr int kRowKinds = 3;

struct ValueSpec {
    Rows rows;
    int32_t width;
};

struct OpSpec {
    Attrs attrs;
    std::vector<int32_t> inputs;
    int32_t output = -1;
    std::vector<int32_t> weights;  // indices into ProgramSpec::weights

    template <class A>
    bool is() const {
        return std::holds_alternative<A>(attrs);
    }
    template <class A>
    const A* as() const {  // null for another kind
        return std::get_if<A>(&attrs);
    }
};

struct ProgramSpec {
    std::vector<ValueSpec> values;
    std::vector<OpSpec> ops;
    std::vector<std::string> weights;
    std::vector<int32_t> outputs;
    int32_t logits = -1;  // the output that tokens are drawn from, if any
    int32_t n_layer = 0, n_kv_head = 0, head_dim = 0, max_positions = 0;
    Format kv_format = Format::kFloat32;

    const ValueSpec& in(const OpSpec& op, size_t i) const { return values[static_cast<size_t>(op.inputs[i])]; }
    const ValueSpec& out(const OpSpec& op) const { return values[static_cast<size_t>(op.output)]; }
};

[[noreturn]] void bad_spec(const std::string& what);  // throws Error(kConfig)
void check_spec(const ProgramSpec& spec);             // throws Error(kConfig) with the name of the op

// What an op needs from a weight.
struct WeightNeed {
    WeightUse use;
    int64_t rows, columns;    // -1: any number
    bool only_table = false;  // a table of float32, and not a matrix that is read as one
};

// Checks that every weight fits its ops. shape_of(weight) returns the shape of the weight with this index.
void check_weights(const ProgramSpec& spec, const std::function<WeightShape(int32_t weight)>& shape_of);

// Returns the weights of a Program from `all`, whose find(name) returns a pointer or null. Throws Error(kConfig) if one
// is missing or does not fit its ops.
template <class All>
auto find_weights(const ProgramSpec& spec, const All& all) {
    std::vector<decltype(all.find({}))> weights;
    for (const std::string& name : spec.weights) {
        weights.push_back(all.find(name));
        if (weights.back() == nullptr) bad_spec("weight " + name + " is not loaded");
    }
    check_weights(spec, [&](int32_t weight) { return weights[static_cast<size_t>(weight)]->shape(); });
    return weights;
}

// Sets ActivationAttrs::rough. rounds(weight): whether a linear of this weight rounds its operands.
void find_rough_activations(ProgramSpec& spec, const std::function<bool(int32_t weight)>& rounds);

}  // namespace fastattn
