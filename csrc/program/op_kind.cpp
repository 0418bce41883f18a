#include "program/op_kind.h"

#include <algorithm>
#include <limits>
#include <utility>

namespace fastattn {
namespace {

[[noreturn]] void wrong_type(const std::string& name, const char* expected) {
    bad_spec(name + ": expected " + expected);
}

// Calls use(kind) for every kind of the table, until it returns true.
template <class F, size_t... i>
bool any_kind(const F& use, std::index_sequence<i...>) {
    return (use(std::variant_alternative_t<i, Attrs>::kKind) || ...);
}

}  // namespace

const AttrValue& AttrReader::take(const std::string& name) {
    const auto found = attrs_.find(name);
    if (found == attrs_.end()) bad_spec("attr " + name + " is missing");
    read_.push_back(name);
    return found->second;
}

bool AttrReader::flag(const std::string& name) {
    const bool* value = std::get_if<bool>(&take(name));
    if (value == nullptr) wrong_type(name, "a bool");
    return *value;
}

int32_t AttrReader::integer(const std::string& name) {
    const int64_t* value = std::get_if<int64_t>(&take(name));
    if (value == nullptr || *value < std::numeric_limits<int32_t>::min() ||
        *value > std::numeric_limits<int32_t>::max())
        wrong_type(name, "a 32-bit integer");
    return static_cast<int32_t>(*value);
}

float AttrReader::number(const std::string& name) {
    const AttrValue& value = take(name);
    if (const auto* integer = std::get_if<int64_t>(&value)) return static_cast<float>(*integer);
    const double* number = std::get_if<double>(&value);
    if (number == nullptr) wrong_type(name, "a number");
    return static_cast<float>(*number);
}

std::string AttrReader::text(const std::string& name) {
    const std::string* value = std::get_if<std::string>(&take(name));
    if (value == nullptr) wrong_type(name, "a string");
    return *value;
}

void AttrReader::check_all_read() const {
    for (const auto& [name, value] : attrs_)
        if (std::find(read_.begin(), read_.end(), name) == read_.end()) bad_spec("unknown attr " + name);
}

void OpCheck::bad(const std::string& what) const {
    bad_spec("op " + std::to_string(index_) + ", " + kind_of(op()).name + ": " + what);
}

void OpCheck::expect_rows(const ValueSpec& value, Rows rows) const {
    if (value.rows != rows) bad("an input or the output has rows of another kind");
}

void OpCheck::expect_width(const ValueSpec& value, int64_t width) const {
    if (value.width != width)
        bad("expected a width of " + std::to_string(width) + ", got " + std::to_string(value.width));
}

void OpCheck::expect_same(const ValueSpec& a, const ValueSpec& b) const {
    expect_rows(a, b.rows);
    expect_width(a, b.width);
}

const OpKind& kind_of(const Attrs& attrs) {
    return std::visit([](const auto& of_kind) -> const OpKind& { return std::decay_t<decltype(of_kind)>::kKind; },
                      attrs);
}

Attrs read_attrs(const std::string& kind, AttrReader& attrs) {
    Attrs result;
    std::string known;
    const auto read = [&](const OpKind& entry) {
        known += (known.empty() ? "" : ", ") + std::string(entry.name);
        if (entry.name != kind) return false;
        result = entry.read(attrs);
        return true;
    };
    if (!any_kind(read, std::make_index_sequence<std::variant_size_v<Attrs>>()))
        bad_spec("op: expected one of " + known + ", got " + kind);
    attrs.check_all_read();
    return result;
}

Rows rows_of(Gather which) {
    return which == Gather::kTokens ? Rows::kTokens : which == Gather::kWanted ? Rows::kWanted : Rows::kSequences;
}

}  // namespace fastattn
