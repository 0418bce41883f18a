#include "program/executor.h"

#include <algorithm>
#include <chrono>
#include <cstring>

#include "core/error.h"
#include "runtime/cpu.h"

namespace fastattn {
namespace {

constexpr int64_t kAloneBelow =
    500'000;  // multiply-adds per step: about ten microseconds, the possible cost of waking threads

[[noreturn]] void bad_input(const std::string& what) {
    throw Error(ErrorKind::kInput, what);
}

}  // namespace

Engine::Running& Engine::running() {
    const std::lock_guard lock(start_mutex());
    return running_.get([this] { return std::make_unique<Running>(threads_); });
}

std::shared_ptr<KvPool> Engine::kv_pool(const KvShape& shape) {
    const std::lock_guard lock(start_mutex());
    if (!kv_pool_) kv_pool_ = std::make_shared<KvPool>(shape);
    if (shape != kv_pool_->shape())
        bad_spec("expected the attention layers, heads and KV format of the model's first Program");
    return kv_pool_;
}

Executor::Executor(std::shared_ptr<Engine> engine, ProgramSpec spec)
    : engine_(std::move(engine)), spec_(std::move(spec)), kernels_(active_kernels()) {
    check_spec(spec_);
    check_weights();
    find_rough_activations(spec_,
                           [this](int32_t weight) { return weights_[weight]->matrix().format != Format::kFloat32; });
    kv_pool_ = engine_->kv_pool({spec_.kv_format, spec_.n_layer, spec_.n_kv_head, spec_.head_dim});
    plan();
}

void Executor::set_profiling(bool on) {
    const std::lock_guard lock(engine_->running().mutex);
    op_seconds_.assign(on ? spec_.ops.size() : 0, 0.0);
}

int32_t Executor::vocab() const {
    if (spec_.logits < 0) bad_input("program: expected one that ends with logits of wanted tokens, to draw from");
    return spec_.values[spec_.outputs[spec_.logits]].width;
}

int64_t Executor::rows_of(int32_t value, const StepInput& step) const {
    switch (spec_.values[value].rows) {
        case Rows::kTokens: return step.n_tokens;
        case Rows::kWanted: return step.n_wanted;
        case Rows::kSequences: return step.n_sequences;
    }
    return 0;
}

void Executor::check_step(const StepInput& step) const {
    check_lengths(step);
    if (!step.caches.empty() && step.caches.size() != static_cast<size_t>(step.n_sequences))
        bad_input("caches: expected one per sequence");
    for (int32_t s = 0; s < static_cast<int32_t>(step.caches.size()); ++s) {
        const KvCache& cache = *step.caches[s];
        cache.check_open();
        if (cache.pool() != kv_pool_.get()) bad_input("caches: a cache belongs to another model");
        check_continues(spec_, step, s, cache.length());
    }
    check_ids(spec_, step, [this](int32_t weight) { return weights_[weight]->rows; });
}

int64_t Executor::output_floats(int32_t value, const StepInput& step) const {
    for (const auto& op : spec_.ops) {
        if (op.output != value || op.kind != OpKind::kAttentionProbs) continue;
        int64_t total = 0;
        for (int32_t s = 0; s < step.n_sequences; ++s) {
            const int64_t length = step.cu_seqlens[s + 1] - step.cu_seqlens[s];
            total += op.n_head * length * (length + (step.caches.empty() ? 0 : step.caches[s]->length()));
        }
        return total;
    }
    return rows_of(value, step) * spec_.values[value].width;
}

View Executor::view(int32_t value) const {
    const Place& place = places_[value];
    View v = views_[place.parent];
    v.data += place.column;
    v.width = spec_.values[value].width;
    return v;
}

// Sets the addresses of everything that the step touches. May allocate, so it runs before the region.
void Executor::prepare(const StepInput& step, const std::vector<float*>& outputs, const Sampler* sampler) {
    const int64_t rows[kRowKinds] = {step.n_tokens, step.n_wanted, step.n_sequences};
    const int threads = engine_->threads();
    int64_t floats = 0;
    const auto take = [&floats](int64_t n) {
        const int64_t at = floats;
        floats += (n + 15) / 16 * 16;
        return at;
    };
    const int64_t scratch_at = take(threads * ops::kScratchFloats);
    std::vector<int64_t> slot_at;
    for (const Slot& slot : slots_) slot_at.push_back(take(slot.stride * rows[static_cast<int>(slot.rows)]));
    const int64_t quantized_at[] = {take(quantized_words(step, 0)), take(quantized_words(step, 1))};
    const int64_t scales_at = take(std::max({rows[0], rows[1], rows[2]}));
    // Keys and values of sequences without a cache live for one layer.
    const bool own = step.caches.empty() && spec_.n_layer > 0;
    const int64_t block_floats = kv_pool_->shape().layer_bytes() / static_cast<int64_t>(sizeof(float));
    std::vector<int64_t> blocks_at;
    int64_t most_blocks = 0;
    for (int32_t s = 0; own && s < step.n_sequences; ++s) {
        const int64_t blocks = (step.cu_seqlens[s + 1] - step.cu_seqlens[s] + kBlockLen - 1) / kBlockLen;
        blocks_at.push_back(take(blocks * block_floats));
        most_blocks = std::max(most_blocks, blocks);
    }
    const int64_t head_block_floats = kv_pool_->shape().head_bytes() / static_cast<int64_t>(sizeof(float));
    const int64_t thread_blocks_at = take(threads * most_blocks * head_block_floats);
    const bool in_tiles = sampler != nullptr && sampled_op_ != nullptr;
    std::vector<int64_t> output_at(outputs.size());  // of outputs that nobody requested
    for (size_t i = 0; i < outputs.size(); ++i)
        if (outputs[i] == nullptr && !(in_tiles && static_cast<int32_t>(i) == spec_.logits))
            output_at[i] = take(output_floats(spec_.outputs[i], step));
    if (workspace_.bytes() < static_cast<size_t>(floats) * sizeof(float)) {
        workspace_ = Buffer();  // free the old one first
        workspace_ = Buffer(static_cast<size_t>(floats) * sizeof(float));
    }
    float* base = workspace_.floats();
    scratch_.clear();
    for (int i = 0; i < threads; ++i) scratch_.push_back(base + scratch_at + i * ops::kScratchFloats);
    for (int i = 0; i < 2; ++i)  // the second one is for bfloat16, which has no scales
        quantized_[i] = {reinterpret_cast<int32_t*>(base + quantized_at[i]), base + scales_at};
    views_.assign(spec_.values.size(), {});
    for (size_t v = 0; v < spec_.values.size(); ++v) {
        const Place& place = places_[v];
        const ValueSpec& value = spec_.values[v];
        if (place.parent != static_cast<int32_t>(v)) continue;
        if (place.output >= 0 && in_tiles && place.output == spec_.logits)
            views_[v] = sampler->logits();
        else if (place.output >= 0)
            views_[v] = {outputs[place.output] ? outputs[place.output] : base + output_at[place.output],
                         rows[static_cast<int>(value.rows)], value.width, value.width};
        else if (place.slot >= 0)
            views_[v] = {base + slot_at[place.slot], rows[static_cast<int>(value.rows)], slots_[place.slot].stride,
                         value.width};
        else
            views_[v] = {nullptr, rows[static_cast<int>(value.rows)], value.width, value.width};
    }
    prepare_sequences(step, blocks_at);
    own_thread_blocks_.assign(threads, {});
    thread_blocks_.clear();
    for (int i = 0; i < threads; ++i) {
        for (int64_t b = 0; b < most_blocks; ++b)
            own_thread_blocks_[i].push_back(
                reinterpret_cast<std::byte*>(base + thread_blocks_at + (i * most_blocks + b) * head_block_floats));
        thread_blocks_.push_back(own_thread_blocks_[i].data());
    }
}

void Executor::prepare_sequences(const StepInput& step, const std::vector<int64_t>& blocks_at) {
    const auto n = static_cast<size_t>(step.n_sequences);
    const int64_t block_bytes = kv_pool_->shape().layer_bytes();
    own_blocks_.assign(blocks_at.size(), {});
    for (auto& sequences : sequences_) sequences.assign(n, {});
    first_tokens_.assign(n, 0);
    last_tokens_.assign(n, 0);
    for (int32_t s = 0, w = 0; s < step.n_sequences; ++s) {
        const int32_t begin = step.cu_seqlens[s], end = step.cu_seqlens[s + 1];
        ops::SequenceBlocks sequence{
            .blocks = nullptr, .token_begin = begin, .token_end = end, .position = 0, .q_begin = begin, .q_end = end};
        if (!blocks_at.empty()) {
            for (int32_t b = 0; b * kBlockLen < end - begin; ++b)
                own_blocks_[s].push_back(workspace_.data() + blocks_at[s] * sizeof(float) + b * block_bytes);
            sequence.blocks = own_blocks_[s].data();
        } else if (!step.caches.empty()) {
            step.caches[s]->reserve(end - begin);
            sequence.blocks = step.caches[s]->blocks();
            sequence.position = step.caches[s]->length();
        }
        sequences_[static_cast<int>(Gather::kTokens)][s] = sequence;
        sequence.q_begin = w;
        while (w < step.n_wanted && step.wanted[w] < end) ++w;
        sequence.q_end = w;
        sequences_[static_cast<int>(Gather::kWanted)][s] = sequence;
        sequence.q_begin = s, sequence.q_end = s + 1;
        sequences_[static_cast<int>(Gather::kFirst)][s] = sequence;
        sequences_[static_cast<int>(Gather::kLast)][s] = sequence;
        first_tokens_[s] = begin;
        last_tokens_[s] = std::max(begin, end - 1);
    }
    query_tokens_[static_cast<int>(Gather::kWanted)] = step.wanted;
    query_tokens_[static_cast<int>(Gather::kFirst)] = first_tokens_.data();
    query_tokens_[static_cast<int>(Gather::kLast)] = last_tokens_.data();
}

int64_t Executor::quantized_words(const StepInput& step, int buffer) const {
    int64_t most = 0;
    for (size_t i = 0; i < spec_.ops.size(); ++i) {
        const OpSpec& op = spec_.ops[i];
        if (op.kind != OpKind::kLinear || roundings_[i].input_buffer != buffer) continue;
        const ops::Matrix matrix = weights_[op.weights[0]]->matrix();
        if (matrix.format != Format::kFloat32)
            most = std::max(most, rows_of(op.inputs[0], step) * ops::quantized_stride(matrix.words));
    }
    return most;
}

int64_t Executor::multiply_adds(const StepInput& step) const {
    int64_t total = 0;
    for (const auto& op : spec_.ops)
        if (op.kind == OpKind::kLinear)
            total += rows_of(op.output, step) * spec_.values[op.inputs[0]].width * spec_.values[op.output].width;
    return total;
}

void Executor::run(const StepInput& step, const std::vector<float*>& outputs, const std::function<bool()>& poll) {
    Engine::Running& running = engine_->running();
    const std::lock_guard lock(running.mutex);
    check_step(step);
    {
        const std::lock_guard no_fork(start_mutex());  // a child must not find half-made pages and buffers
        prepare(step, outputs, nullptr);
    }
    run_locked(step, outputs, nullptr, running, poll);
    advance(step);
}

void Executor::draw(const StepInput& step, const SampleArgs& args, const std::function<bool()>& poll) {
    Engine::Running& running = engine_->running();
    const std::lock_guard lock(running.mutex);
    check_step(step);
    const std::vector<float*> outputs(spec_.outputs.size(), nullptr);
    Sampler* sampler = nullptr;
    {
        const std::lock_guard no_fork(start_mutex());
        sampler = &sampler_.get([this] { return std::make_unique<Sampler>(kernels_); });
        sampler->begin(args, engine_->threads(), /*whole=*/sampled_op_ == nullptr);
        prepare(step, outputs, sampler);
    }
    run_locked(step, outputs, sampler, running, poll);
    sampler->check();
    advance(step);
}

void Executor::run_locked(const StepInput& step, const std::vector<float*>& outputs, Sampler* sampler,
                          Engine::Running& running, const std::function<bool()>& poll) {
    const std::function<void(Team&)> body = [&](Team& team) {
        using Clock = std::chrono::steady_clock;
        const bool profiling = team.index() == 0 && !op_seconds_.empty();
        Clock::time_point start = profiling ? Clock::now() : Clock::time_point{};
        for (size_t i = 0; i < spec_.ops.size(); ++i) {
            if (spec_.ops[i].kind == OpKind::kSlice) continue;
            // Does nothing after a stop, but keeps the barriers in step.
            run_op(spec_.ops[i], team, step, sampler);
            team.barrier();
            if (!profiling) continue;
            const Clock::time_point end = Clock::now();
            op_seconds_[i] += std::chrono::duration<double>(end - start).count();
            start = end;
        }
        if (sampler == nullptr) return;
        if (sampled_op_ == nullptr) {
            sampler->take_rows(team, view(spec_.outputs[spec_.logits]));
            team.barrier();
        }
        sampler->finish(team);
    };
    const int64_t work = multiply_adds(step);
    const bool small = work < kAloneBelow, alone = small || running.pace.alone(step.n_tokens);
    const auto begin = std::chrono::steady_clock::now();
    const bool finished = alone ? running.pool.run_alone(body, poll) : running.pool.run(body, poll);
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - begin;
    if (!small && finished && running.pool.size() > 1) running.pace.took(step.n_tokens, work, took.count(), alone);
    if (!finished) throw Error(ErrorKind::kCancelled, "the call was cancelled");
    for (size_t i = 0; i < spec_.outputs.size(); ++i) {  // slices, and values that are output twice
        const int32_t value = spec_.outputs[i];
        if (outputs[i] == nullptr || places_[value].output == static_cast<int32_t>(i)) continue;
        const View v = view(value);
        for (int64_t row = 0; row < v.rows; ++row)
            std::memcpy(outputs[i] + row * v.width, v.row(row), static_cast<size_t>(v.width) * sizeof(float));
    }
}

void Executor::advance(const StepInput& step) {
    for (int32_t s = 0; s < step.n_sequences && !step.caches.empty(); ++s)
        step.caches[s]->advance(step.cu_seqlens[s + 1] - step.cu_seqlens[s]);
}

}  // namespace fastattn
