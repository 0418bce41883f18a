#include "program/spec.h"

namespace fastattn {

// An activation after a linear in a format that rounds is computed as in that linear's epilogue.
void find_rough_activations(ProgramSpec& spec, const std::function<bool(int32_t weight)>& rounds) {
    std::vector<const OpSpec*> source(spec.values.size(), nullptr);  // the op that computed a value
    for (auto& op : spec.ops) {
        const bool passes_on = op.is<SliceAttrs>() || op.is<GatherRowsAttrs>() || op.is<LoraAttrs>();
        source[static_cast<size_t>(op.output)] = passes_on ? source[static_cast<size_t>(op.inputs[0])] : &op;
        auto* activation = std::get_if<ActivationAttrs>(&op.attrs);
        if (activation == nullptr) continue;
        const OpSpec* from = source[static_cast<size_t>(op.inputs[0])];
        const LinearAttrs* linear = from != nullptr ? from->as<LinearAttrs>() : nullptr;
        activation->rough = linear != nullptr && !linear->has_residual && linear->activation == Activation::kNone &&
                            rounds(from->weights[0]);
    }
}

}  // namespace fastattn
