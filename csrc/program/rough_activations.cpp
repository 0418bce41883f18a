#include "program/spec.h"

namespace fastattn {

// An activation after a linear in a format that rounds is computed as in that linear's epilogue.
void find_rough_activations(ProgramSpec& spec, const std::function<bool(int32_t weight)>& rounds) {
    std::vector<const OpSpec*> source(spec.values.size(), nullptr);  // the op that computed a value
    for (auto& op : spec.ops) {
        const bool passes_on = op.kind == OpKind::kSlice || op.kind == OpKind::kGatherRows;
        source[op.output] = passes_on ? source[op.inputs[0]] : &op;
        if (op.kind != OpKind::kActivation) continue;
        const OpSpec* from = source[op.inputs[0]];
        op.rough = from != nullptr && from->kind == OpKind::kLinear && !from->has_residual &&
                   from->activation == Activation::kNone && rounds(from->weights[0]);
    }
}

}  // namespace fastattn
