// Runs one op of a Program on the threads of a region.
#pragma once
#include <cstddef>

#include "program/step_memory.h"

namespace fastattn {

// One op of the running step, on one thread of the region.
struct OpRun {
    const Model& model;
    const StepMemory& memory;
    const StepInput& step;
    Team& team;
    size_t index;      // of the op
    Sampler* sampler;  // null if no tokens are drawn

    const OpSpec& op() const { return model.spec.ops[index]; }
    View in(size_t i) const { return memory.view(model, op().inputs[i]); }
    View out() const { return memory.view(model, op().output); }
    const Weight& weight(size_t i) const { return *model.weights[op().weights[i]]; }
    // The numbers of a vector, or of a table of float32.
    const float* vector(size_t i) const { return weight(i).data.floats(); }
    // What the op rounds for the next linear.
    ops::Rounded rounded() const;
};

void run_op(const OpRun& run);

}  // namespace fastattn
