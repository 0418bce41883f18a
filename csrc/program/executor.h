// Runs a Program: one parallel region per step, with every buffer planned in advance.
#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "program/drawing.h"
#include "program/engine.h"
#include "program/spec.h"
#include "program/step_memory.h"
#include "sampling/sampler.h"

namespace fastattn {

class Executor final : public DrawingExecutor {
public:
    Executor(std::shared_ptr<Engine> engine, ProgramSpec spec);

    const ProgramSpec& spec() const { return model_.spec; }
    Engine& engine() { return *engine_; }
    std::shared_ptr<KvPool> kv_pool() const { return kv_pool_; }
    int32_t vocab() const override { return vocab_of(spec()); }

    // Runs a step. outputs[i] receives output i of the spec, row-major and dense: [rows, width], or for attention_probs
    // [n_maps, q_len, kv_len] of each sequence, concatenated. Throws before any work if the input is invalid, and
    // Error(kCancelled) after a stop. After an error the caches have their old length.
    void run(const StepInput& step, const std::vector<float*>& outputs, const std::function<bool()>& poll);

    // Draws from the logits in the same region.
    void draw(const StepInput& step, const SampleArgs& args, const std::function<bool()>& poll) override;

    // A page for keys and values that the caller has. Waits for a running step.
    PagePool::Page new_page();

    // Seconds spent in each op of the spec since profiling was enabled; empty while it is disabled.
    void set_profiling(bool on);  // waits for a running step
    const std::vector<double>& op_seconds() const { return op_seconds_; }

    int64_t workspace_bytes() const {
        const Sampler* sampler = sampler_.find();
        return memory_.bytes() + (sampler ? sampler->bytes() : 0);
    }

private:
    void check(const StepInput& step) const;
    int64_t multiply_adds(const StepInput& step) const;  // of its linears
    // All of these need the model's lock. outputs[i] is null if not requested.
    void run_region(const StepInput& step, Sampler* sampler, Engine::Running& running,
                    const std::function<bool()>& poll);
    void run_ops(Team& team, const StepInput& step, Sampler* sampler);
    void copy_outputs(const std::vector<float*>& outputs) const;

    std::shared_ptr<Engine> engine_;
    Model model_;
    std::shared_ptr<KvPool> kv_pool_;
    StepMemory memory_;  // of the running step
    std::vector<double> op_seconds_;
    ForkLocal<Sampler> sampler_;  // threads write to it throughout a step
};

}  // namespace fastattn
