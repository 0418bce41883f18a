#include "sampling/sampler.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <iterator>
#include <limits>
#include <new>

#include "core/error.h"
#include "runtime/cpu.h"
#include "simd/float_mode.h"

namespace fastattn {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kLowest = std::numeric_limits<float>::lowest();

int64_t stride_of(int32_t vocab) {
    return (int64_t{vocab} + 15) / 16 * 16;
}

}  // namespace

void Sampler::begin(const SampleArgs& args, int threads, bool whole) {
    args_ = args;
    threads_ = threads;
    keeps_ = whole || args.logprobs != nullptr;
    for (int32_t row = 0; row < args.n; ++row) {
        const SampleParams& params = args.params[row];
        keeps_ |= params.repetition_penalty != 1.0f || !(params.greedy() || has_top_k(params));
    }
    if (keeps_)
        logits_.grow(static_cast<size_t>(args.n * stride_of(args.vocab)) * sizeof(float));
    else
        rooms_.grow(static_cast<size_t>(threads * kTileFloats) * sizeof(float));
    const auto rows = static_cast<size_t>(args.n);
    scans_.resize(std::max(scans_.size(), static_cast<size_t>(threads) * rows));
    for (int thread = 0; thread < threads; ++thread)
        for (size_t row = 0; row < rows; ++row)
            // With a penalty the candidates are known only after all logits are.
            reset(scans_[static_cast<size_t>(thread) * rows + row], args.params[row],
                  /*collects=*/args.params[row].repetition_penalty == 1.0f);
    if (worker_vocab_ != args.vocab || workers_.size() != static_cast<size_t>(threads)) {
        workers_.assign(static_cast<size_t>(threads), Worker{Drawer(kernels_, args.vocab), {}, {}, {}});
        worker_vocab_ = args.vocab;
    }
    if (n_least_ < rows) {
        least_ = std::make_unique<std::atomic<float>[]>(rows);
        n_least_ = rows;
    }
    for (size_t row = 0; row < rows; ++row) least_[row] = kLowest;
    status_.assign(rows, SampleStatus::kFine);
    out_of_memory_ = false;
}

View Sampler::logits() const {
    return {keeps_ ? logits_.floats() : nullptr, args_.n, stride_of(args_.vocab), args_.vocab};
}

float* Sampler::room(int thread) {
    return rooms_.floats() + thread * kTileFloats;
}

void Sampler::reset(Scan& scan, const SampleParams& params, bool collects) const {
    scan.best = {-kInfinity, -1};
    scan.above_best = kLowest;
    scan.nan = false;
    scan.collects = collects && has_top_k(params);
    scan.limit = std::max<size_t>(64, 2 * static_cast<size_t>(std::max(params.top_k, 0)));
    scan.candidates.clear();
}

// Scans logits [n] of the ids from `column` on. Ids come in ascending order.
void Sampler::look(Scan& scan, const float* logits, int32_t n, int32_t column) const {
    for (int32_t i = 0;; ++i) {
        i += kernels_.find_f32({.x = logits + i, .n = n - i, .threshold = scan.above_best});
        if (i >= n) return;
        if (std::isnan(logits[i])) {
            scan.nan = true;
            return;
        }
        if (logits[i] > scan.best.logit) scan.best = {logits[i], column + i};
        scan.above_best = std::nextafter(scan.best.logit, kInfinity);
    }
}

// Like look, with top-k.
void Sampler::collect(Scan& scan, const float* logits, int32_t n, int32_t column, const SampleParams& params,
                      std::atomic<float>& least) const {
    float threshold = least.load(std::memory_order_relaxed);
    for (int32_t i = 0;;) {
        i += kernels_.find_f32({.x = logits + i, .n = n - i, .threshold = threshold});
        if (i >= n) return;
        // Candidates are dense at first. So several logits are written at a time, and those that qualify are kept.
        const int32_t end = std::min(i + kCollected, n);
        size_t count = scan.candidates.size();
        scan.candidates.resize(count + kCollected);
        for (; i < end; ++i) {
            scan.candidates[count] = {logits[i], column + i};
            count += logits[i] >= threshold ? 1 : 0;
            scan.nan |= logits[i] != logits[i];
        }
        scan.candidates.resize(count);
        if (count < scan.limit) continue;
        const float kept = thin_out(scan.candidates, static_cast<size_t>(params.top_k), params.temperature);
        if (kept > least.load(std::memory_order_relaxed)) least.store(kept, std::memory_order_relaxed);
        threshold = std::max(threshold, kept);
        scan.limit = std::max(scan.limit, 2 * scan.candidates.size());  // many are tied with the last
    }
}

void Sampler::take(int thread, const Tile& tile) {
    const int32_t width = tile.view.width;
    try {
        for (int64_t i = 0; i < tile.view.rows; ++i) {
            const int64_t row = tile.row + i;
            const SampleParams& params = args_.params[row];
            float* logits = tile.view.row(i);
            for (int32_t j = 0; j < args_.n_suppressed && args_.suppress[row] > 0; ++j)
                if (const int32_t at = args_.suppressed[j] - tile.column; at >= 0 && at < width)
                    logits[at] = -kInfinity;
            Scan& scan = scans_[static_cast<size_t>(thread * int64_t{args_.n} + row)];
            if (scan.collects)
                collect(scan, logits, width, tile.column, params, least_[row]);
            else
                look(scan, logits, width, tile.column);
        }
    } catch (const std::bad_alloc&) {
        out_of_memory_ = true;
    }
}

void Sampler::take_row(int thread, int32_t row, const float* logits) {
    View to = this->logits();
    to.data = to.row(row);
    to.rows = 1;
    std::memcpy(to.data, logits, static_cast<size_t>(args_.vocab) * sizeof(float));
    take(thread, {.view = to, .row = row, .column = 0});
}

void Sampler::take_rows(Team& team, View logits) {
    team.for_chunks(args_.n, [&](int64_t row) { take_row(team.index(), static_cast<int32_t>(row), logits.row(row)); });
}

void Sampler::finish(Team& team) {
    team.for_chunks(args_.n, [&](int64_t row) { finish_row(team.index(), static_cast<int32_t>(row)); });
}

// With top-k the highest logit is among the candidates.
void Sampler::find_best(Scan& scan) {
    for (const Candidate& candidate : scan.candidates)
        if (is_higher(candidate, scan.best)) scan.best = candidate;
}

void Sampler::merge(int32_t row) {
    Scan& all = scans_[static_cast<size_t>(row)];
    for (int thread = 1; thread < threads_; ++thread) {
        const Scan& other = scans_[static_cast<size_t>(thread * int64_t{args_.n} + row)];
        all.nan |= other.nan;
        if (is_higher(other.best, all.best)) all.best = other.best;
        const float least = least_[static_cast<size_t>(row)];
        std::copy_if(other.candidates.begin(), other.candidates.end(), std::back_inserter(all.candidates),
                     [least](const Candidate& c) { return c.logit >= least; });
    }
    find_best(all);
}

void Sampler::finish_row(int thread, int32_t row) {
    try {
        merge(row);
        const Scan& scan = scans_[static_cast<size_t>(row)];
        if (scan.nan)
            status_[static_cast<size_t>(row)] = SampleStatus::kNan;
        else if (!std::isfinite(scan.best.logit))
            status_[static_cast<size_t>(row)] = scan.best.logit > 0 ? SampleStatus::kInfinite : SampleStatus::kEmpty;
        else
            args_.ids[row] = choose(thread, row, keeps_ ? logits().row(row) : nullptr);
    } catch (const std::bad_alloc&) {
        out_of_memory_ = true;
    }
}

// `logits`: the row's logits, if they are stored; may be changed.
int32_t Sampler::choose(int thread, int32_t row, float* logits) {
    const SampleParams& params = args_.params[row];
    Worker& worker = workers_[static_cast<size_t>(thread)];
    Scan* scan = &scans_[static_cast<size_t>(row)];
    const float highest = scan->best.logit;
    float sum, log_sum = 0.0f;
    if (args_.logprobs != nullptr)
        kernels_.exp_sum_f32(
            {.x = logits, .out = nullptr, .n = args_.vocab, .shift = highest, .sum = &sum, .log_sum = &log_sum});
    worker.seen.clear();
    if (params.repetition_penalty != 1.0f) {
        penalize(worker, row, logits);
        scan = &worker.scan;
        reset(*scan, params, /*collects=*/true);
        std::atomic<float> least{kLowest};
        if (scan->collects)
            collect(*scan, logits, args_.vocab, 0, params, least);
        else
            look(*scan, logits, args_.vocab, 0);
        find_best(*scan);
        if (scan->best.id < 0) scan->best.id = 0;  // the penalty made all logits -inf
    }
    int32_t id = scan->best.id;
    if (has_top_k(params))
        id = worker.drawer.from_candidates(scan->candidates, scan->best, params);
    else if (!params.greedy())
        id = worker.drawer.from_logits(logits, scan->best, params);
    if (args_.logprobs != nullptr) {
        float logit = logits[id];
        for (const Candidate& seen : worker.seen)
            if (seen.id == id) logit = seen.logit;
        args_.logprobs[row] = logit - highest - log_sum;
    }
    return id;
}

void Sampler::penalize(Worker& worker, int32_t row, float* logits) const {
    const float penalty = args_.params[row].repetition_penalty;
    const int32_t* history = args_.histories[row];
    worker.seen_bits.resize((static_cast<size_t>(args_.vocab) + 63) / 64);
    worker.seen.reserve(static_cast<size_t>(args_.history_lengths[row]));  // nothing below may throw and leave bits set
    for (int64_t i = 0; i < args_.history_lengths[row]; ++i) {
        const int32_t id = history[i];
        uint64_t& word = worker.seen_bits[static_cast<size_t>(id) / 64];
        const uint64_t bit = uint64_t{1} << (id % 64);
        if ((word & bit) != 0) continue;
        word |= bit;
        worker.seen.push_back({logits[id], id});
        logits[id] = logits[id] < 0.0f ? logits[id] * penalty : logits[id] / penalty;
    }
    for (const Candidate& seen : worker.seen) worker.seen_bits[static_cast<size_t>(seen.id) / 64] = 0;
}

void Sampler::check() const {
    if (out_of_memory_) throw Error(ErrorKind::kOutOfMemory, "sampling: could not allocate memory for candidates");
    for (size_t row = 0; row < status_.size(); ++row) check_row(static_cast<int32_t>(row), status_[row]);
}

void sample(const float* logits, const SampleArgs& args) {
    const DefaultFloatMode mode;
    Sampler sampler(active_kernels());
    sampler.begin(args, /*threads=*/1, /*whole=*/true);
    for (int32_t row = 0; row < args.n; ++row) {
        sampler.take_row(0, row, logits + int64_t{row} * args.vocab);
        sampler.finish_row(0, row);
    }
    sampler.check();
}

}  // namespace fastattn
