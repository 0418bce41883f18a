// Chooses the next token of each row while the linear that computes the logits runs.
#pragma once
#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "core/buffer.h"
#include "ops/ops.h"
#include "sampling/draw.h"
#include "sampling/sample_args.h"

namespace fastattn {

// Scans the logits of each tile while they are in the cache: for the highest and, with top-k, for the candidates. The
// logits are written to memory only if a row of the step needs all of them: for its log-probability, for a penalty, or
// to draw without top-k.
//
// Call begin, then take on the threads of a region, then finish there after a barrier, then check.
class Sampler final : public ops::LinearSink {
public:
    explicit Sampler(const KernelTable& kernels) : kernels_(kernels) {}

    // May allocate. `args` and what it points to must stay valid until check(). `whole`: the logits come from
    // take_rows.
    void begin(const SampleArgs& args, int threads, bool whole);

    // [n, vocab], for the linear that computes them; data is null if no row needs them. take() changes them.
    View logits() const;

    float* room(int thread) override;
    void take(int thread, const Tile& tile) override;
    // Like take, for complete logits.
    void take_row(int thread, int32_t row, const float* logits);
    void take_rows(Team& team, View logits);

    void finish(Team& team);
    void finish_row(int thread, int32_t row);

    // Throws Error(kNonFinite) with the first row that has NaN, +inf or nothing above -inf.
    void check() const;

    int64_t bytes() const { return static_cast<int64_t>(logits_.bytes() + rooms_.bytes()); }

private:
    // One thread's scan of a row, on its own cache lines.
    struct alignas(64) Scan {
        Candidate best;
        float above_best;  // the next float after the best
        bool nan, collects;
        size_t limit;  // size at which the candidates are thinned out
        std::vector<Candidate> candidates;
    };
    struct Worker {
        Drawer drawer;
        Scan scan;                        // of a row after its penalty
        std::vector<uint64_t> seen_bits;  // [vocab]
        std::vector<Candidate> seen;      // ids of a row's history, each once, with their logits before the penalty
    };
    static constexpr int32_t kCollected = 16;  // logits that are scanned together

    void reset(Scan& scan, const SampleParams& params, bool collects) const;
    void look(Scan& scan, const float* logits, int32_t n, int32_t column) const;
    void collect(Scan& scan, const float* logits, int32_t n, int32_t column, const SampleParams& params,
                 std::atomic<float>& least) const;
    static void find_best(Scan& scan);
    void merge(int32_t row);  // merges the scans of all threads into that of the first
    void penalize(Worker& worker, int32_t row, float* logits) const;
    int32_t choose(int thread, int32_t row, float* logits);
    bool has_top_k(const SampleParams& params) const {
        return !params.greedy() && params.top_k > 0 && params.top_k < args_.vocab;
    }

    const KernelTable& kernels_;
    SampleArgs args_{};
    int threads_ = 0;
    bool keeps_ = false;
    Buffer logits_, rooms_;
    std::vector<Scan> scans_;  // [threads, n]
    // [n] With top-k: the lowest logit that may be a candidate. All threads share what one of them finds.
    std::unique_ptr<std::atomic<float>[]> least_;
    size_t n_least_ = 0;
    std::vector<Worker> workers_;
    int32_t worker_vocab_ = -1;
    std::vector<SampleStatus> status_;
    std::atomic<bool> out_of_memory_ = false;
};

// The same for logits [n, vocab] in memory, on the calling thread.
void sample(const float* logits, const SampleArgs& args);

}  // namespace fastattn
