// What the decoding loop needs from an executor.
#pragma once
#include <functional>

#include "program/step.h"
#include "sampling/sample_args.h"

namespace fastattn {

class DrawingExecutor {
public:
    virtual ~DrawingExecutor() = default;

    // Runs a step that only draws a token for each wanted row. Throws before any work if the input is invalid,
    // Error(kCancelled) after a stop, and Error(kNonFinite). After an error the caches have their old length.
    virtual void draw(const StepInput& step, const SampleArgs& args, const std::function<bool()>& poll) = 0;
    // The width of the logits. Throws Error(kInput) if there are none.
    virtual int32_t vocab() const = 0;
};

}  // namespace fastattn
