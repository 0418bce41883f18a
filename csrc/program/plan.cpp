// Validates a Program's weights and plans its workspace.
#include <algorithm>
#include <string>

#include "program/executor.h"

namespace fastattn {
namespace {

// Avoids row strides that are multiples of 1 KiB: they put the rows of a register tile into the same few cache sets.
int64_t stride_for(int64_t width) {
    const int64_t stride = (width + 15) / 16 * 16;
    return stride % 256 == 0 ? stride + 16 : stride;
}

// Inputs whose memory the output may reuse, row by row.
std::vector<int32_t> takeover_candidates(const OpSpec& op) {
    switch (op.kind) {
        case OpKind::kAdd: return op.inputs;
        case OpKind::kLayerNorm:
        case OpKind::kActivation:
        case OpKind::kL2Normalize: return {op.inputs[0]};
        case OpKind::kLinear:
            // Each element of the residual is read just before c is written. x is still read later for other columns.
            if (op.has_residual) return {op.inputs[1]};
            return {};
        default: return {};
    }
}

}  // namespace

void Executor::check_weights() {
    for (const auto& name : spec_.weights) {
        weights_.push_back(engine_->weights().find(name));
        if (weights_.back() == nullptr) bad_spec("weight " + name + " is not loaded");
    }
    const auto expect = [&](const OpSpec& op, size_t i, Weight::Use use, int64_t rows, int64_t columns) {
        const Weight& weight = *weights_[op.weights[i]];
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
        } else if (op.kind == OpKind::kEmbedding) {
            const Weight& table = *weights_[op.weights[0]];
            if (table.use == Weight::Use::kVector || table.columns != width)
                bad_spec("weight " + spec_.weights[op.weights[0]] + " does not fit its op");
        }
    }
}

// The linear whose output is the logits and is not used otherwise, so that it need not be written.
const OpSpec* Executor::op_of_logits() const {
    if (spec_.logits < 0) return nullptr;
    const int32_t value = spec_.outputs[static_cast<size_t>(spec_.logits)];
    if (std::count(spec_.outputs.begin(), spec_.outputs.end(), value) > 1) return nullptr;
    const OpSpec* found = nullptr;
    for (const auto& op : spec_.ops) {
        if (std::count(op.inputs.begin(), op.inputs.end(), value) > 0) return nullptr;
        if (op.kind == OpKind::kLinear && op.output == value) found = &op;
    }
    return found;
}

// A norm rounds its rows for the linear directly after it while they are in the cache. A bfloat16 linear writes its
// output as bfloat16 if its only reader is a bfloat16 linear. int8 cannot do so, because its scale is known only after
// the whole row.
void Executor::plan_rounding() {
    roundings_.assign(spec_.ops.size(), {});
    std::vector<int> uses(spec_.values.size(), 0);
    for (const auto& op : spec_.ops)
        for (const int32_t input : op.inputs) ++uses[input];
    for (const int32_t output : spec_.outputs) ++uses[output];
    const auto format = [&](const OpSpec& op) { return weights_[op.weights[0]]->matrix().format; };
    for (size_t i = 0; i + 1 < spec_.ops.size(); ++i) {
        const OpSpec &op = spec_.ops[i], &next = spec_.ops[i + 1];
        if (next.kind != OpKind::kLinear || next.inputs[0] != op.output || format(next) == Format::kFloat32) continue;
        const bool both_bfloat16 = op.kind == OpKind::kLinear && format(op) == Format::kBfloat16 &&
                                   format(next) == Format::kBfloat16 && uses[op.output] == 1 &&
                                   spec_.values[op.output].width % 16 == 0;
        if (op.kind != OpKind::kLayerNorm && !both_bfloat16) continue;
        roundings_[i].output_reader = static_cast<int32_t>(i) + 1;
        roundings_[i].output_rounded_only = both_bfloat16;
        roundings_[i + 1].input_done = true;
        roundings_[i + 1].input_buffer = both_bfloat16 ? 1 - roundings_[i].input_buffer : 0;
    }
}

void Executor::plan() {
    sampled_op_ = op_of_logits();
    plan_rounding();
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
        last_use[place.parent] = spec_.ops.size();  // kept to the end, to be copied out
    }
    std::vector<bool> free;
    for (size_t i = 0; i < spec_.ops.size(); ++i) {
        const OpSpec& op = spec_.ops[i];
        Place& place = places_[op.output];
        const ValueSpec& value = spec_.values[op.output];
        if (op.kind != OpKind::kSlice && op.kind != OpKind::kAttentionProbs && place.output < 0 &&
            !roundings_[i].output_rounded_only) {
            for (const int32_t input : takeover_candidates(op)) {
                const Place& source = places_[input];
                // x may be a slice of the residual, whose other columns are read later.
                if (op.kind == OpKind::kLinear && places_[op.inputs[0]].parent == input) continue;
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
        if (place.slot >= 0 && last_use[op.output] == i) free[place.slot] = true;  // it has no reader
    }
}

}  // namespace fastattn
