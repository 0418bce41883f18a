// Checks of a Program and the plan of its workspace.
#include <algorithm>
#include <string>

#include "core/error.h"
#include "program/executor.h"

namespace fastattn {
namespace {

[[noreturn]] void bad_spec(const std::string& what) {
    throw Error(ErrorKind::kConfig, "program: " + what);
}

// Row strides that are a multiple of 1 KiB put the rows of a register tile into the same few cache sets.
int64_t stride_for(int64_t width) {
    const int64_t stride = (width + 15) / 16 * 16;
    return stride % 256 == 0 ? stride + 16 : stride;
}

// Inputs whose memory the output may take over, row by row.
std::vector<int32_t> takeover_candidates(const OpSpec& op) {
    switch (op.kind) {
        case OpKind::kAdd: return op.inputs;
        case OpKind::kLayerNorm:
        case OpKind::kActivation:
        case OpKind::kL2Normalize: return {op.inputs[0]};
        case OpKind::kLinear:
            // The residual is read element by element just before c is written; x is read by other columns later.
            if (op.has_residual && op.inputs[1] != op.inputs[0]) return {op.inputs[1]};
            return {};
        default: return {};
    }
}

}  // namespace

void Executor::check_spec() const {
    const auto n_values = static_cast<int32_t>(spec_.values.size());
    std::vector<bool> written(spec_.values.size(), false);
    for (const auto& op : spec_.ops) {
        for (const int32_t input : op.inputs)
            if (input < 0 || input >= n_values || !written[input]) bad_spec("an op reads a value before it is written");
        if (op.output < 0 || op.output >= n_values || written[op.output])
            bad_spec("a value is written twice or unknown");
        written[op.output] = true;
        if (op.kind == OpKind::kAttention || op.kind == OpKind::kAttentionProbs) {
            if (op.n_head < 1 || op.n_kv_head != spec_.n_kv_head || op.n_head % op.n_kv_head != 0 ||
                op.head_dim != spec_.head_dim || op.head_dim < 1 || op.head_dim > kMaxHeadDim || op.layer < 0 ||
                op.layer >= spec_.n_layer)
                bad_spec("attention: heads, head_dim (1 to 256) or layer do not fit");
            if (spec_.values[op.inputs[0]].width != op.n_head * op.head_dim ||
                spec_.values[op.inputs[1]].width != op.n_kv_head * op.head_dim)
                bad_spec("attention: q or k has the wrong width");
            if (spec_.kv_format != Format::kFloat32 && !(op.scale > 0.0f))
                bad_spec("attention: the scale must be positive unless kv_dtype is float32");
        }
        if (op.kind == OpKind::kSlice &&
            (op.offset < 0 || op.offset + spec_.values[op.output].width > spec_.values[op.inputs[0]].width))
            bad_spec("slice: outside of its input");
    }
    for (const int32_t output : spec_.outputs)
        if (output < 0 || output >= n_values || !written[output]) bad_spec("an output is never written");
}

void Executor::check_weights() {
    for (const auto& name : spec_.weights) {
        weights_.push_back(engine_->weights().find(name));
        if (weights_.back() == nullptr) bad_spec("weight " + name + " is not loaded");
    }
    const auto expect = [&](const OpSpec& op, size_t i, Weight::Use use, int64_t rows, int64_t columns) {
        const Weight& weight = *weights_.at(op.weights.at(i));
        if (weight.use != use || weight.rows != rows || weight.columns != columns)
            bad_spec("weight " + spec_.weights[op.weights[i]] + " does not fit its op");
    };
    for (const auto& op : spec_.ops) {
        const int64_t width = spec_.values[op.output].width;
        if (op.kind == OpKind::kLinear) {
            expect(op, 0, Weight::Use::kMatrix, width, spec_.values[op.inputs[0]].width);
            if (op.has_bias) expect(op, 1, Weight::Use::kVector, width, 1);
        } else if (op.kind == OpKind::kLayerNorm) {
            expect(op, 0, Weight::Use::kVector, width, 1);
            expect(op, 1, Weight::Use::kVector, width, 1);
        } else if (op.kind == OpKind::kEmbedding && weights_.at(op.weights.at(0))->columns != width) {
            bad_spec("weight " + spec_.weights[op.weights[0]] + " does not fit its op");
        }
    }
}

void Executor::plan() {
    const size_t n = spec_.values.size();
    places_.resize(n);
    std::vector<size_t> last_use(n, 0);
    for (size_t v = 0; v < n; ++v) places_[v] = {.parent = static_cast<int32_t>(v), .column = 0};
    for (size_t i = 0; i < spec_.ops.size(); ++i) {
        const OpSpec& op = spec_.ops[i];
        if (op.kind == OpKind::kSlice) {
            const Place& source = places_[op.inputs[0]];
            places_[op.output].parent = source.parent;
            places_[op.output].column = source.column + op.offset;
        }
        for (const int32_t input : op.inputs) last_use[places_[input].parent] = i;
        last_use[places_[op.output].parent] = i;
    }
    for (size_t i = 0; i < spec_.outputs.size(); ++i) {
        Place& place = places_[spec_.outputs[i]];
        if (place.parent == spec_.outputs[i] && place.output < 0) place.output = static_cast<int32_t>(i);
        last_use[place.parent] = spec_.ops.size();  // kept to the end, for those that are copied out
    }
    std::vector<bool> free;
    for (size_t i = 0; i < spec_.ops.size(); ++i) {
        const OpSpec& op = spec_.ops[i];
        Place& place = places_[op.output];
        const ValueSpec& value = spec_.values[op.output];
        if (op.kind != OpKind::kSlice && op.kind != OpKind::kAttentionProbs && place.output < 0) {
            for (const int32_t input : takeover_candidates(op)) {
                const Place& source = places_[input];
                if (place.slot < 0 && source.parent == input && source.slot >= 0 && last_use[input] == i &&
                    spec_.values[input].width == value.width && spec_.values[input].rows == value.rows)
                    place.slot = source.slot;
            }
            for (size_t s = 0; s < slots_.size() && place.slot < 0; ++s)
                if (free[s] && slots_[s].rows == value.rows) place.slot = static_cast<int32_t>(s);
            if (place.slot < 0) {
                place.slot = static_cast<int32_t>(slots_.size());
                slots_.push_back({value.rows, 0});
                free.push_back(false);
            }
            free[place.slot] = false;
            slots_[place.slot].stride = std::max(slots_[place.slot].stride, stride_for(value.width));
        }
        for (const int32_t input : op.inputs) {
            const Place& source = places_[places_[input].parent];
            if (source.slot >= 0 && source.slot != place.slot && last_use[places_[input].parent] == i)
                free[source.slot] = true;
        }
        if (place.slot >= 0 && last_use[op.output] == i) free[place.slot] = true;  // nobody reads it
    }
}

}  // namespace fastattn
