#include "program/lifetimes.h"

#include <algorithm>

#include "program/op_kind.h"

namespace fastattn {
namespace {

size_t at(int32_t value) {
    return static_cast<size_t>(value);
}

std::vector<Source> sources_of(const ProgramSpec& spec) {
    std::vector<Source> sources;
    for (size_t v = 0; v < spec.values.size(); ++v) sources.push_back({static_cast<int32_t>(v), 0});
    for (const OpSpec& op : spec.ops)
        if (const auto* slice = op.as<SliceAttrs>()) {
            const Source& from = sources[at(op.inputs[0])];
            sources[at(op.output)] = {from.parent, from.column + slice->offset};
        }
    return sources;
}

}  // namespace

Lifetimes::Lifetimes(const ProgramSpec& spec)
    : spec_(spec), sources_(sources_of(spec)), last_use_(spec.values.size(), 0), held_(spec.values.size()) {
    const auto use = [&](int32_t value, size_t i) { last_use_[at(sources_[at(value)].parent)] = i; };
    for (size_t i = 0; i < spec.ops.size(); ++i) {
        for (const int32_t input : spec.ops[i].inputs) use(input, i);
        use(spec.ops[i].output, i);
    }
    for (const int32_t output : spec.outputs) use(output, spec.ops.size());  // read after all ops
}

// The slot of an input that the output of op i may overwrite, because nothing else reads that input, now or later. -1
// if there is none.
int32_t Lifetimes::overwritten(size_t i) const {
    const OpSpec& op = spec_.ops[i];
    const auto overwrites = kind_of(op).overwrites;
    if (overwrites == nullptr) return -1;
    const ValueSpec& value = spec_.out(op);
    const std::vector<size_t> candidates = overwrites(op.attrs);
    const auto read_later = [&](int32_t parent) {  // by this op itself, after it has begun to write
        for (size_t k = 0; k < op.inputs.size(); ++k)
            if (std::find(candidates.begin(), candidates.end(), k) == candidates.end() &&
                sources_[at(op.inputs[k])].parent == parent)
                return true;
        return false;
    };
    for (const size_t k : candidates) {
        const int32_t input = op.inputs[k];
        const ValueSpec& from = spec_.values[at(input)];
        if (sources_[at(input)].parent == input && held_[at(input)].slot >= 0 && last_use_[at(input)] == i &&
            from.width == value.width && from.rows == value.rows && !read_later(input))
            return held_[at(input)].slot;
    }
    return -1;
}

int32_t Lifetimes::take(Rows rows, int64_t size) {
    size_t found = 0;
    while (found < slots_.size() && !(free_[found] && slots_[found].rows == rows)) ++found;
    if (found == slots_.size()) {
        slots_.push_back({rows, 0});
        free_.push_back(false);
    }
    free_[found] = false;
    slots_[found].size = std::max(slots_[found].size, size);
    return static_cast<int32_t>(found);
}

int32_t Lifetimes::place(size_t i, int64_t size) {
    const OpSpec& op = spec_.ops[i];
    int32_t slot = overwritten(i);
    if (slot < 0)
        slot = take(spec_.out(op).rows, size);
    else
        slots_[at(slot)].size = std::max(slots_[at(slot)].size, size);
    return held_[at(op.output)].slot = slot;
}

int32_t Lifetimes::place_copy(size_t i, int64_t size) {
    const OpSpec& op = spec_.ops[i];
    return held_[at(op.output)].copy = take(spec_.out(op).rows, size);
}

void Lifetimes::release_value(size_t value, size_t i) {
    if (last_use_[value] != i) return;
    const Held& held = held_[value];
    const int32_t kept = held_[at(spec_.ops[i].output)].slot;  // the output may have taken over the slot
    const bool is_output = value == at(spec_.ops[i].output);
    if (held.slot >= 0 && (is_output || held.slot != kept)) free_[at(held.slot)] = true;
    if (held.copy >= 0) free_[at(held.copy)] = true;
}

void Lifetimes::release(size_t i) {
    const OpSpec& op = spec_.ops[i];
    for (const int32_t input : op.inputs) release_value(at(sources_[at(input)].parent), i);
    if (sources_[at(op.output)].parent == op.output) release_value(at(op.output), i);  // it has no reader
}

}  // namespace fastattn
