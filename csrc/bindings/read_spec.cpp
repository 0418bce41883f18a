// Reads a Program from Python's plain lists, and the names of formats.
#include <utility>

#include "bindings/bindings.h"
#include "bindings/names.h"
#include "bindings/read_spec.h"

#include <pybind11/stl.h>

namespace fastattn {
namespace {

constexpr Named<Rows> kRowNames[] = {
    {"tokens", Rows::kTokens}, {"wanted", Rows::kWanted}, {"sequences", Rows::kSequences}};
constexpr Named<OpKind> kOpNames[] = {
    {"embedding", OpKind::kEmbedding},     {"add", OpKind::kAdd},
    {"layer_norm", OpKind::kLayerNorm},    {"linear", OpKind::kLinear},
    {"activation", OpKind::kActivation},   {"slice", OpKind::kSlice},
    {"attention", OpKind::kAttention},     {"attention_probs", OpKind::kAttentionProbs},
    {"gather_rows", OpKind::kGatherRows},  {"pool", OpKind::kPool},
    {"l2_normalize", OpKind::kL2Normalize}};
constexpr Named<Index> kIndexNames[] = {
    {"token_ids", Index::kTokenIds}, {"positions", Index::kPositions}, {"token_type_ids", Index::kTokenTypeIds}};
constexpr Named<Gather> kGatherNames[] = {
    {"tokens", Gather::kTokens}, {"wanted", Gather::kWanted}, {"first", Gather::kFirst}, {"last", Gather::kLast}};
template <class T, size_t n>
T lookup(const Named<T> (&names)[n], const char* what, const py::handle& name) {
    return value_of(names, name.cast<std::string>(), what, ErrorKind::kConfig);
}

}  // namespace

Format format_from(const std::string& name) {
    static constexpr Named<Format> names[] = {{"float32", Format::kFloat32},
                                              {"bfloat16", Format::kBfloat16},
                                              {"int8", Format::kInt8},
                                              {"int4", Format::kInt4}};
    return value_of(names, name, "format", ErrorKind::kConfig);
}

Format kv_format_from(const std::string& name) {
    const Format format = format_from(name);
    if (static_cast<int>(format) >= kKvFormats)
        throw Error(ErrorKind::kInput, "kv_dtype: expected float32, bfloat16 or int8, got " + name);
    return format;
}

namespace {

// Reads the attrs of one op into the fields of its kind. An unknown attr is an error, never ignored.
void read_attrs(const py::dict& attrs, OpSpec& op) {
    for (const auto& [key, value] : attrs) {
        const auto name = key.cast<std::string>();
        if (name == "activation")
            op.activation = lookup(kActivationNames, "program: activation", value);
        else if (name == "index")
            op.index = lookup(kIndexNames, "program: index", value);
        else if (name == "which" || name == "q_rows")
            op.gather = lookup(kGatherNames, "program: rows", value);
        else if (name == "pool")
            op.pool = lookup(kPoolNames, "program: pool", value);
        else if (name == "has_bias")
            op.has_bias = value.cast<bool>();
        else if (name == "has_residual")
            op.has_residual = value.cast<bool>();
        else if (name == "causal")
            op.causal = value.cast<bool>();
        else if (name == "offset")
            op.offset = op.index_offset = value.cast<int32_t>();
        else if (name == "width")
            continue;  // the width of the output
        else if (name == "layer")
            op.layer = value.cast<int32_t>();
        else if (name == "n_head")
            op.n_head = value.cast<int32_t>();
        else if (name == "n_kv_head")
            op.n_kv_head = value.cast<int32_t>();
        else if (name == "head_dim")
            op.head_dim = value.cast<int32_t>();
        else if (name == "eps")
            op.eps = value.cast<float>();
        else if (name == "scale")
            op.scale = value.cast<float>();
        else
            throw Error(ErrorKind::kConfig, "program: unknown attr " + name);
    }
}

ProgramSpec read_spec(const py::dict& dict) {
    ProgramSpec spec;
    for (const auto& item : dict["values"]) {
        const auto [rows, width] = item.cast<std::pair<py::object, int32_t>>();
        spec.values.push_back({lookup(kRowNames, "program: rows", rows), width});
    }
    for (const auto& item : dict["ops"]) {
        const auto fields = item.cast<py::tuple>();
        OpSpec op;
        op.kind = lookup(kOpNames, "program: op", fields[0]);
        op.inputs = fields[1].cast<std::vector<int32_t>>();
        op.output = fields[2].cast<int32_t>();
        op.weights = fields[3].cast<std::vector<int32_t>>();
        read_attrs(fields[4].cast<py::dict>(), op);
        spec.ops.push_back(std::move(op));
    }
    spec.weights = dict["weights"].cast<std::vector<std::string>>();
    spec.outputs = dict["outputs"].cast<std::vector<int32_t>>();
    spec.logits = dict["logits"].cast<int32_t>();
    spec.n_layer = dict["n_layer"].cast<int32_t>();
    spec.n_kv_head = dict["n_kv_head"].cast<int32_t>();
    spec.head_dim = dict["head_dim"].cast<int32_t>();
    spec.max_positions = dict["max_positions"].cast<int32_t>();
    spec.kv_format = kv_format_from(dict["kv_dtype"].cast<std::string>());
    return spec;
}

}  // namespace

ProgramSpec spec_from(const py::dict& dict) {
    try {
        return read_spec(dict);
    } catch (const py::cast_error&) {
        bad_spec("a field has another type than expected");
    } catch (py::error_already_set& error) {
        if (!error.matches(PyExc_LookupError) && !error.matches(PyExc_TypeError)) throw;
        bad_spec(std::string("a field is missing or has another type than expected: ") + error.what());
    }
}

}  // namespace fastattn
