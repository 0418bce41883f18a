#include "program/executor.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <string>

#include "core/error.h"
#include "program/run_op.h"
#include "runtime/cpu.h"

namespace fastattn {
namespace {

// Multiply-adds of a step that takes about ten microseconds. Waking the threads can take as long.
constexpr int64_t kAloneBelow = 500'000;

// Checks the numbers of a table `columns`, because attention computes addresses from them.
void check_columns(const OpSpec& op, const AttentionAttrs* attrs, const std::vector<const Weight*>& weights) {
    if (attrs == nullptr || !attrs->has_columns) return;
    const Weight& weight = *weights[static_cast<size_t>(op.weights[attrs->has_bias ? 1 : 0])];
    const float* columns = weight.data.floats();
    for (int64_t i = 0; i < weight.columns; ++i) {
        const float step = i == 0 ? 0.0f : columns[i] - columns[i - 1];
        const bool whole = columns[i] >= 0.0f && columns[i] < static_cast<float>(attrs->n_columns) &&
                           columns[i] == std::floor(columns[i]);
        if (!whole || (step != 0.0f && step != 1.0f))
            bad_spec("attention: columns: expected integers from 0 to " + std::to_string(attrs->n_columns - 1) +
                     ", each the same as the one before or the next one, got another number at " + std::to_string(i));
    }
}

Model model_of(Engine& engine, ProgramSpec spec) {
    check_spec(spec);
    std::vector<const Weight*> weights = find_weights(spec, engine.weights());
    for (const OpSpec& op : spec.ops) {
        check_columns(op, op.as<AttentionAttrs>(), weights);
        check_columns(op, op.as<AttentionProbsAttrs>(), weights);
    }
    find_rough_activations(spec, [&](int32_t weight) { return weights[weight]->format != Format::kFloat32; });
    Plan plan(spec, weights);
    const KvShape kv{spec.kv_format, spec.n_layer, spec.n_kv_head, spec.head_dim};
    return {std::move(spec), std::move(weights), std::move(plan), kv, active_kernels()};
}

}  // namespace

Executor::Executor(std::shared_ptr<Engine> engine, ProgramSpec spec)
    : engine_(std::move(engine)), model_(model_of(*engine_, std::move(spec))), kv_pool_(engine_->kv_pool(model_.kv)) {}

void Executor::set_profiling(bool on) {
    const std::lock_guard lock(engine_->running().mutex);
    op_seconds_.assign(on ? spec().ops.size() : 0, 0.0);
}

PagePool::Page Executor::new_page() {
    const std::lock_guard lock(engine_->running().mutex);
    const std::lock_guard no_fork(start_mutex());  // a child must not find half-made pages
    return kv_pool_->page();
}

void Executor::check(const StepInput& step) const {
    check_step(spec(), step, kv_pool_.get(), [this](int32_t weight) { return model_.weights[weight]->rows; });
}

int64_t Executor::multiply_adds(const StepInput& step) const {
    int64_t total = 0;
    for (const auto& op : spec().ops) {
        if (op.is<LstmAttrs>() || op.is<GruAttrs>())
            for (const int32_t weight : op.weights)
                total +=
                    step.rows(spec().out(op).rows) * model_.weights[weight]->rows * model_.weights[weight]->columns;
        if (op.is<LinearAttrs>())
            total += step.rows(spec().out(op).rows) * spec().in(op, 0).width * spec().out(op).width;
    }
    return total;
}

void Executor::run(const StepInput& step, const std::vector<float*>& outputs, const std::function<bool()>& poll) {
    Engine::Running& running = engine_->running();
    const std::lock_guard lock(running.mutex);
    check(step);
    {
        const std::lock_guard no_fork(start_mutex());  // a child must not find half-made pages and buffers
        memory_.prepare(model_, step, outputs, nullptr, engine_->threads());
    }
    run_region(step, nullptr, running, poll);
    copy_outputs(outputs);
    advance(step);
}

void Executor::draw(const StepInput& step, const SampleArgs& args, const std::function<bool()>& poll) {
    Engine::Running& running = engine_->running();
    const std::lock_guard lock(running.mutex);
    check(step);
    Sampler* sampler = nullptr;
    {
        const std::lock_guard no_fork(start_mutex());
        sampler = &sampler_.get([this] { return std::make_unique<Sampler>(model_.kernels); });
        sampler->begin(args, engine_->threads(), /*whole=*/model_.plan.sampled_op() < 0);
        const std::vector<float*> outputs(spec().outputs.size(), nullptr);
        memory_.prepare(model_, step, outputs, sampler, engine_->threads());
    }
    run_region(step, sampler, running, poll);
    sampler->check();
    advance(step);
}

void Executor::run_region(const StepInput& step, Sampler* sampler, Engine::Running& running,
                          const std::function<bool()>& poll) {
    const std::function<void(Team&)> body = [&](Team& team) { run_ops(team, step, sampler); };
    const int64_t work = multiply_adds(step);
    const bool small = work < kAloneBelow, alone = small || running.pace.alone(step.n_tokens);
    const auto begin = std::chrono::steady_clock::now();
    const bool finished = running.pool.run_on(alone ? 1 : running.pool.size(), body, poll);
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - begin;
    if (!small && finished && running.pool.size() > 1) running.pace.took(step.n_tokens, work, took.count(), alone);
    if (!finished) throw Error(ErrorKind::kCancelled, "the call was cancelled");
}

// Runs on every thread of the region.
void Executor::run_ops(Team& team, const StepInput& step, Sampler* sampler) {
    using Clock = std::chrono::steady_clock;
    const bool profiling = team.index() == 0 && !op_seconds_.empty();
    Clock::time_point start = profiling ? Clock::now() : Clock::time_point{};
    for (size_t i = 0; i < spec().ops.size(); ++i) {
        if (spec().ops[i].is<SliceAttrs>()) continue;
        // Does nothing after a stop, but keeps the barriers in step.
        run_op({.model = model_, .memory = memory_, .step = step, .team = team, .index = i, .sampler = sampler});
        team.barrier();
        if (!profiling) continue;
        const Clock::time_point end = Clock::now();
        op_seconds_[i] += std::chrono::duration<double>(end - start).count();
        start = end;
    }
    if (sampler == nullptr) return;
    if (model_.plan.sampled_op() < 0) {
        sampler->take_rows(team, memory_.view(model_, spec().outputs[spec().logits]));
        team.barrier();
    }
    sampler->finish(team);
}

// Copies slices, and values that are output twice. Everything else is already in the caller's memory.
void Executor::copy_outputs(const std::vector<float*>& outputs) const {
    for (size_t i = 0; i < outputs.size(); ++i) {
        const int32_t value = spec().outputs[i];
        if (outputs[i] == nullptr || model_.plan.place(value).output == static_cast<int32_t>(i)) continue;
        const View v = memory_.view(model_, value);
        for (int64_t row = 0; row < v.rows; ++row)
            std::memcpy(outputs[i] + row * v.width, v.row(row), static_cast<size_t>(v.width) * sizeof(float));
    }
}

}  // namespace fastattn
