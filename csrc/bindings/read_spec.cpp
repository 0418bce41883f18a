// Reads a Program from Python's plain lists, and the names of formats.
#include <utility>

#include "bindings/bindings.h"
#include "bindings/read_spec.h"
#include "program/op_kind.h"

#include <pybind11/stl.h>

namespace fastattn {
namespace {

constexpr Named<Rows> kRowNames[] = {
    {"tokens", Rows::kTokens}, {"wanted", Rows::kWanted}, {"sequences", Rows::kSequences}};

// The names of the first `n` formats, for messages.
std::string format_names(int n) {
    std::string names;
    for (int i = 0; i < n; ++i) names += (i > 0 ? ", " : "") + std::string(kFormatTraits[i].name);
    return names;
}

AttrValue value_of_attr(const py::handle& value) {
    if (py::isinstance<py::bool_>(value)) return value.cast<bool>();
    if (py::isinstance<py::int_>(value)) return value.cast<int64_t>();
    if (py::isinstance<py::float_>(value)) return value.cast<double>();
    return value.cast<std::string>();
}

Attrs attrs_from(const py::handle& kind, const py::dict& dict) {
    std::map<std::string, AttrValue> values;
    for (const auto& [name, value] : dict) values[name.cast<std::string>()] = value_of_attr(value);
    AttrReader attrs(std::move(values));
    return read_attrs(kind.cast<std::string>(), attrs);
}

ProgramSpec read_spec(const py::dict& dict) {
    ProgramSpec spec;
    for (const auto& item : dict["values"]) {
        const auto [rows, width] = item.cast<std::pair<py::object, int32_t>>();
        const Rows kind = value_of(kRowNames, rows.cast<std::string>(), "program: rows", ErrorKind::kConfig);
        spec.values.push_back({kind, width});
    }
    for (const auto& item : dict["ops"]) {
        const auto fields = item.cast<py::tuple>();
        OpSpec op;
        op.inputs = fields[1].cast<std::vector<int32_t>>();
        op.output = fields[2].cast<int32_t>();
        op.weights = fields[3].cast<std::vector<int32_t>>();
        op.attrs = attrs_from(fields[0], fields[4].cast<py::dict>());
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

Format format_from(const std::string& name) {
    for (const FormatTraits& traits : kFormatTraits)
        if (name == traits.name) return traits.format;
    throw Error(ErrorKind::kConfig, "format: expected one of " + format_names(kFormats) + ", got " + name);
}

Format kv_format_from(const std::string& name) {
    const Format format = format_from(name);
    if (static_cast<int>(format) < kKvFormats) return format;
    throw Error(ErrorKind::kInput, "kv_dtype: expected one of " + format_names(kKvFormats) + ", got " + name);
}

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
