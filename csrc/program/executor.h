// Runs a Program: one parallel region per step, with every buffer planned in advance.
#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

#include "core/buffer.h"
#include "ops/ops.h"
#include "program/kv_cache.h"
#include "program/sampler.h"
#include "program/spec.h"
#include "program/step.h"
#include "program/weights.h"
#include "runtime/owned_mutex.h"
#include "runtime/pace.h"
#include "runtime/thread_pool.h"

namespace fastattn {

// Shared by the executors of one model: weights, threads, KV pages. One step runs at a time.
class Engine {
public:
    explicit Engine(int threads) : threads_(threads) {}

    int threads() const { return threads_; }
    Weights& weights() { return weights_; }

    // The pool and the lock of this process. Recreated in the child of a fork, where the old threads do not exist.
    struct Running {
        explicit Running(int threads) : pool(threads) {}
        OwnedMutex mutex;
        ThreadPool pool;
        Pace pace;
    };
    Running& running();

    // The pages of all executors of this model. They also distinguish its caches from those of other models.
    std::shared_ptr<KvPool> kv_pool(const KvShape& shape);

private:
    int threads_;
    Weights weights_;
    std::shared_ptr<KvPool> kv_pool_;
    ForkLocal<Running> running_;
};

// The input of one step.
struct StepInput : StepArrays {
    std::vector<KvCache*> caches;  // one per sequence, or empty
};

class Executor {
public:
    Executor(std::shared_ptr<Engine> engine, ProgramSpec spec);

    const ProgramSpec& spec() const { return spec_; }
    Engine& engine() { return *engine_; }
    std::shared_ptr<KvPool> kv_pool() const { return kv_pool_; }
    int32_t vocab() const;  // width of the logits; throws Error(kInput) if there are none
    int64_t rows_of(int32_t value, const StepInput& step) const;

    // Number of floats in output `value`: rows x width, or [n_head, q_len, kv_len] of every sequence.
    int64_t output_floats(int32_t value, const StepInput& step) const;

    // Runs a step. outputs[i] receives output i of the spec, row-major and dense: [rows, width], or for attention_probs
    // [n_head, q_len, kv_len] of each sequence, concatenated. Throws before any work, or throws Cancelled after a stop;
    // the caches then have their old length. The caller must acquire the caches (CacheGuard) before it computes the
    // output sizes, because attention maps grow with the caches.
    void run(const StepInput& step, const std::vector<float*>& outputs, const std::function<bool()>& poll);

    // Runs a step that only draws a token for each wanted row, from its logits in the same region. Throws as run does,
    // and Error(kNonFinite).
    void draw(const StepInput& step, const SampleArgs& args, const std::function<bool()>& poll);

    // Seconds spent in each op of the spec since profiling was enabled; empty while it is disabled.
    void set_profiling(bool on);  // waits for a running step
    const std::vector<double>& op_seconds() const { return op_seconds_; }

    int64_t workspace_bytes() const {
        const Sampler* sampler = sampler_.find();
        return static_cast<int64_t>(workspace_.bytes()) + (sampler ? sampler->bytes() : 0);
    }

private:
    struct Place {          // where a value is stored
        int32_t parent;     // the value itself, or the value that it is a slice of
        int32_t column;     // first column within the parent
        int32_t slot = -1;  // workspace slot of a parent; -1: an output, in the caller's memory
        int32_t output = -1;
    };
    // Which op rounds the input of a linear, and which of quantized_ then stores it.
    struct Rounding {
        int32_t output_reader = -1;        // the linear that reads this op's output rounded
        bool output_rounded_only = false;  // nothing reads the unrounded output
        bool input_done = false;           // the previous op rounded this linear's input
        int input_buffer = 0;
    };
    struct Slot {
        Rows rows;
        int64_t stride;
    };

    void check_weights();
    void plan();
    void plan_rounding();
    const OpSpec* op_of_logits() const;
    void check_step(const StepInput& step) const;
    int64_t quantized_words(const StepInput& step, int buffer) const;  // of the largest input of a linear
    ops::Rounded rounded(const OpSpec& op) const;                      // what `op` rounds for the next linear
    static void advance(const StepInput& step);                        // its caches
    int64_t multiply_adds(const StepInput& step) const;                // of its linears
    // Both need the model's lock. outputs[i] is null if not requested.
    void run_locked(const StepInput& step, const std::vector<float*>& outputs, Sampler* sampler,
                    Engine::Running& running, const std::function<bool()>& poll);
    void prepare(const StepInput& step, const std::vector<float*>& outputs, const Sampler* sampler);
    View view(int32_t value) const;
    void prepare_sequences(const StepInput& step, const std::vector<int64_t>& blocks_at);
    void run_op(const OpSpec& op, Team& team, const StepInput& step, Sampler* sampler) const;
    ops::Matrix next_matrix(const OpSpec& op) const;  // of the next linear after `op`, an element of spec_.ops
    void embedding(const OpSpec& op, Team& team, const StepInput& step) const;
    void attention(const OpSpec& op, Team& team, const StepInput& step) const;
    void gather_rows(const OpSpec& op, Team& team, const StepInput& step) const;
    void pool(const OpSpec& op, Team& team, const StepInput& step) const;

    std::shared_ptr<Engine> engine_;
    ProgramSpec spec_;
    std::vector<const Weight*> weights_;
    std::shared_ptr<KvPool> kv_pool_;
    std::vector<Place> places_;
    std::vector<Slot> slots_;
    std::vector<Rounding> roundings_;  // one per op
    const KernelTable& kernels_;
    Buffer workspace_;
    std::vector<double> op_seconds_;
    const OpSpec* sampled_op_ = nullptr;  // the linear of the logits, if nothing else reads them
    ForkLocal<Sampler> sampler_;          // threads write to it throughout a step
    // Of the running step:
    std::vector<View> views_;
    // For each kind of rows of q: each sequence's share of an attention, and each row's token (null for kTokens).
    std::vector<ops::SequenceBlocks> sequences_[kGatherKinds];
    const int32_t* query_tokens_[kGatherKinds] = {};
    std::vector<int32_t> first_tokens_, last_tokens_;
    ops::Quantized quantized_[2];                      // room for the rounded activations of one linear each
    std::vector<float*> scratch_;                      // one per thread
    std::vector<std::vector<std::byte*>> own_blocks_;  // one per sequence
    std::vector<std::vector<std::byte*>> own_thread_blocks_;
    std::vector<std::byte* const*> thread_blocks_;
};

}  // namespace fastattn
