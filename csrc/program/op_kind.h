// What a kind of op declares for every executor: how it is read from Python, what fits it, what it does to memory.
#pragma once
#include <map>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "program/names.h"
#include "program/spec.h"

namespace fastattn {

using AttrValue = std::variant<bool, int64_t, double, std::string>;

// Reads the attrs of one op. Throws Error(kConfig) for an attr that is missing or has another type.
class AttrReader {
public:
    explicit AttrReader(std::map<std::string, AttrValue> attrs) : attrs_(std::move(attrs)) {}

    bool flag(const std::string& name);
    int32_t integer(const std::string& name);
    float number(const std::string& name);
    template <class T, size_t n>
    T choice(const std::string& name, const Named<T> (&names)[n]) {
        return value_of(names, text(name), "program: " + name, ErrorKind::kConfig);
    }
    void check_all_read() const;  // throws Error(kConfig): an attr that no kind reads is never ignored

private:
    const AttrValue& take(const std::string& name);
    std::string text(const std::string& name);

    std::map<std::string, AttrValue> attrs_;
    std::vector<std::string> read_;
};

// One op while its shapes are checked. All functions throw Error(kConfig) with the number and the name of the op.
class OpCheck {
public:
    OpCheck(const ProgramSpec& spec, size_t index) : spec_(spec), index_(index) {}

    const ProgramSpec& spec() const { return spec_; }
    const OpSpec& op() const { return spec_.ops[index_]; }
    size_t index() const { return index_; }
    const ValueSpec& in(size_t i) const { return spec_.in(op(), i); }
    const ValueSpec& out() const { return spec_.out(op()); }
    template <class A>
    const A& attrs() const {
        return std::get<A>(op().attrs);
    }

    [[noreturn]] void bad(const std::string& what) const;
    void expect_rows(const ValueSpec& value, Rows rows) const;
    void expect_width(const ValueSpec& value, int64_t width) const;
    void expect_same(const ValueSpec& a, const ValueSpec& b) const;

private:
    const ProgramSpec& spec_;
    size_t index_;
};

// Each number of `index`, plus `offset`, must be a row of the op's first weight.
struct TableIndex {
    Index index;
    int32_t offset;
};

struct OpKind {
    const char* name;
    size_t inputs = 0, weights = 0;  // optional ones included; `absent` says how many of them this op does not have

    Attrs (*read)(AttrReader& attrs);
    void (*check)(const OpCheck& op);  // shapes
    std::vector<WeightNeed> (*needs)(const ProgramSpec& spec, const OpSpec& op) = nullptr;

    struct Absent {
        size_t inputs, weights;
    };
    Absent (*absent)(const Attrs& attrs) = nullptr;
    std::optional<TableIndex> (*table_index)(const Attrs& attrs) = nullptr;

    // The inputs (by their place in OpSpec::inputs) whose memory the output may take. Before the op writes a row, or a
    // part of a row, it has read that row or part from all of these inputs. It may read other inputs later.
    std::vector<size_t> (*overwrites)(const Attrs& attrs) = nullptr;

    bool is_view = false;      // the output is a part of the input: no work, no memory
    bool rounds_rows = false;  // can also write its rows in the format of the linear that reads them next
    bool writes_maps = false;  // the output has no rows: attention maps, whose size depends on the step
};

const OpKind& kind_of(const Attrs& attrs);
inline const OpKind& kind_of(const OpSpec& op) {
    return kind_of(op.attrs);
}

// Throws Error(kConfig) for an unknown name, and what AttrReader throws.
Attrs read_attrs(const std::string& kind, AttrReader& attrs);

// Rows of the tokens that a selection has.
Rows rows_of(Gather which);

inline constexpr Named<Index> kIndexNames[] = {
    {"token_ids", Index::kTokenIds}, {"positions", Index::kPositions}, {"token_type_ids", Index::kTokenTypeIds}};
inline constexpr Named<Gather> kGatherNames[] = {
    {"tokens", Gather::kTokens}, {"wanted", Gather::kWanted}, {"first", Gather::kFirst}, {"last", Gather::kLast}};

}  // namespace fastattn
