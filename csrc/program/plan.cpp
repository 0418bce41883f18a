#include "program/plan.h"

#include <algorithm>

#include "program/op_kind.h"

namespace fastattn {
namespace {

// Avoids row strides that are multiples of 1 KiB: they put the rows of a register tile into the same few cache sets.
int64_t stride_for(int64_t width) {
    const int64_t stride = (width + 15) / 16 * 16;
    return stride % 256 == 0 ? stride + 16 : stride;
}

int32_t linear_of_logits(const ProgramSpec& spec) {
    if (spec.logits < 0) return -1;
    const int32_t value = spec.outputs[static_cast<size_t>(spec.logits)];
    if (std::count(spec.outputs.begin(), spec.outputs.end(), value) > 1) return -1;
    int32_t found = -1;
    for (size_t i = 0; i < spec.ops.size(); ++i) {
        const OpSpec& op = spec.ops[i];
        if (std::count(op.inputs.begin(), op.inputs.end(), value) > 0) return -1;
        if (op.is<LinearAttrs>() && op.output == value) found = static_cast<int32_t>(i);
    }
    return found;
}

std::vector<int32_t> next_linears(const ProgramSpec& spec) {
    std::vector<int32_t> next(spec.ops.size(), -1);
    for (size_t i = spec.ops.size(); i-- > 1;)
        next[i - 1] = spec.ops[i].is<LinearAttrs>() ? static_cast<int32_t>(i) : next[i];
    return next;
}

std::vector<int> count_uses(const ProgramSpec& spec) {
    std::vector<int> uses(spec.values.size(), 0);
    for (const auto& op : spec.ops)
        for (const int32_t input : op.inputs) ++uses[input];
    for (const int32_t output : spec.outputs) ++uses[output];
    return uses;
}

}  // namespace

Plan::Plan(const ProgramSpec& spec, const std::vector<const Weight*>& weights)
    : next_linear_(next_linears(spec)), sampled_op_(linear_of_logits(spec)) {
    plan_rounding(spec, weights);
    plan_slots(spec);
}

// A norm rounds its rows for the linear directly after it while they are in the cache. A bfloat16 linear, or an
// attention, writes its output as bfloat16 if its only reader is a bfloat16 linear. int8 cannot do so, because its
// scale is known only after the whole row.
void Plan::plan_rounding(const ProgramSpec& spec, const std::vector<const Weight*>& weights) {
    roundings_.assign(spec.ops.size(), {});
    const std::vector<int> uses = count_uses(spec);
    const auto format = [&](const OpSpec& op) { return weights[op.weights[0]]->matrix().format; };
    for (size_t i = 0; i + 1 < spec.ops.size(); ++i) {
        const OpSpec &op = spec.ops[i], &next = spec.ops[i + 1];
        if (!next.is<LinearAttrs>() || next.inputs[0] != op.output || format(next) == Format::kFloat32) continue;
        const bool may_write = op.is<LinearAttrs>()      ? format(op) == Format::kBfloat16
                               : op.is<AttentionAttrs>() ? op.as<AttentionAttrs>()->head_dim % 16 == 0
                                                         : false;
        const bool writes_bfloat16 =
            may_write && format(next) == Format::kBfloat16 && uses[op.output] == 1 && spec.out(op).width % 16 == 0;
        if (!kind_of(op).rounds_rows && !writes_bfloat16) continue;
        roundings_[i].output_reader = static_cast<int32_t>(i) + 1;
        roundings_[i].output_rounded_only = writes_bfloat16;
        roundings_[i + 1].input_done = true;
        roundings_[i + 1].input_buffer = writes_bfloat16 ? 1 - roundings_[i].input_buffer : 0;
    }
}

void Plan::plan_slots(const ProgramSpec& spec) {
    Lifetimes lifetimes(spec);
    sources_ = lifetimes.sources();
    places_.assign(spec.values.size(), {});
    for (size_t i = 0; i < spec.outputs.size(); ++i) {
        const int32_t value = spec.outputs[i];
        if (source(value).parent == value && place(value).output < 0) places_[value].output = static_cast<int32_t>(i);
    }
    for (size_t i = 0; i < spec.ops.size(); ++i) {
        const OpSpec& op = spec.ops[i];
        const OpKind& kind = kind_of(op);
        if (!kind.is_view && !kind.writes_maps && place(op.output).output < 0 && !roundings_[i].output_rounded_only)
            places_[op.output].slot = lifetimes.place(i, stride_for(spec.out(op).width));
        lifetimes.release(i);
    }
    slots_ = lifetimes.slots();
}

}  // namespace fastattn
