#include "program/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <string>
#include <vector>

#include "core/error.h"
#include "runtime/cpu.h"
#include "runtime/float_mode.h"

namespace fastattn {
namespace {

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

// Candidates by falling logit, then rising id; only as much of the order as was asked for is worked out.
class Ranking {
public:
    explicit Ranking(const std::vector<float>& logits) : logits_(logits) {
        for (size_t i = 0; i < logits.size(); ++i)
            if (logits[i] > kMinusInfinity) ids_.push_back(static_cast<int32_t>(i));
    }
    size_t size() const { return ids_.size(); }
    int32_t operator[](size_t rank) {
        while (rank >= sorted_) {
            const size_t end = std::min(ids_.size(), std::max<size_t>(64, sorted_ * 4));
            const auto by_logit = [this](int32_t a, int32_t b) {
                return logits_[a] > logits_[b] || (logits_[a] == logits_[b] && a < b);
            };
            std::partial_sort(ids_.begin() + static_cast<long>(sorted_), ids_.begin() + static_cast<long>(end),
                              ids_.end(), by_logit);
            sorted_ = end;
        }
        return ids_[rank];
    }

private:
    const std::vector<float>& logits_;
    std::vector<int32_t> ids_;
    size_t sorted_ = 0;
};

class RowSampler {
public:
    RowSampler(const KernelTable& kernels, int32_t vocab)
        : kernels_(kernels), logits_(static_cast<size_t>(vocab)), probs_(static_cast<size_t>(vocab)) {}

    int32_t draw(const float* logits, const SampleParams& params, const int32_t* history, int64_t n_history) {
        logits_.assign(logits, logits + logits_.size());
        penalise(params.repetition_penalty, history, n_history);
        if (params.do_sample == 0 || params.temperature == 0.0f) return argmax();
        const int32_t highest = argmax();
        for (float& x : logits_) x /= params.temperature;
        const int32_t best = argmax();
        // Beyond float32 on either side there is nothing left to weigh: the highest logit, as with temperature 0.
        if (!std::isfinite(logits_[static_cast<size_t>(best)])) return highest;
        Ranking ranking(logits_);
        size_t kept = ranking.size();
        if (params.top_k > 0 && static_cast<size_t>(params.top_k) < kept) {
            const float last = logits_[static_cast<size_t>(ranking[static_cast<size_t>(params.top_k) - 1])];
            kept = static_cast<size_t>(params.top_k);
            while (kept < ranking.size() && logits_[static_cast<size_t>(ranking[kept])] == last) ++kept;
            for (float& x : logits_)
                if (x < last) x = kMinusInfinity;
        }
        softmax();
        if (params.top_p < 1.0f) kept = nucleus(ranking, kept, params.top_p);
        if (params.min_p > 0.0f) {
            const float least = params.min_p * probs_[static_cast<size_t>(best)];
            size_t n = 1;
            while (n < kept && probs_[static_cast<size_t>(ranking[n])] >= least) ++n;
            kept = n;
        }
        return pick(ranking, kept, params);
    }

    // Of `id` under the logits as they came.
    float logprob(const float* logits, int32_t id) {
        const auto n = static_cast<int32_t>(probs_.size());
        kernels_.softmax_f32(
            {.x = logits, .x_stride = n, .out = probs_.data(), .out_stride = n, .rows = 1, .n = n, .log = true});
        return probs_[static_cast<size_t>(id)];
    }

private:
    void penalise(float penalty, const int32_t* history, int64_t n) {
        if (penalty == 1.0f) return;
        seen_.assign(history, history + n);
        std::sort(seen_.begin(), seen_.end());
        seen_.erase(std::unique(seen_.begin(), seen_.end()), seen_.end());
        for (const int32_t id : seen_) {
            float& x = logits_[static_cast<size_t>(id)];
            x = x < 0.0f ? x * penalty : x / penalty;
        }
    }
    int32_t argmax() const {
        int32_t index;
        float value;
        kernels_.argmax_f32(
            {.x = logits_.data(), .n = static_cast<int32_t>(logits_.size()), .index = &index, .value = &value});
        return index;
    }
    void softmax() {
        const auto n = static_cast<int32_t>(logits_.size());
        kernels_.softmax_f32({.x = logits_.data(),
                              .x_stride = n,
                              .out = probs_.data(),
                              .out_stride = n,
                              .rows = 1,
                              .n = n,
                              .log = false});
    }
    // The shortest head of the ranking whose probabilities reach top_p of all; at least one.
    size_t nucleus(Ranking& ranking, size_t kept, float top_p) {
        double sum = 0.0;
        for (size_t rank = 0; rank < kept; ++rank) {
            sum += probs_[static_cast<size_t>(ranking[rank])];
            if (sum >= static_cast<double>(top_p)) return rank + 1;
        }
        return std::max<size_t>(kept, 1);
    }
    int32_t pick(Ranking& ranking, size_t kept, const SampleParams& params) {
        double total = 0.0;
        if (kept == ranking.size())  // rank order is not needed for the sum of all
            total = std::accumulate(probs_.begin(), probs_.end(), 0.0);
        else
            for (size_t rank = 0; rank < kept; ++rank) total += probs_[static_cast<size_t>(ranking[rank])];
        uint32_t words[4];
        philox(params.seed, params.counter, words);
        const double threshold = static_cast<double>(words[0] >> 8) * 0x1p-24 * total;
        double sum = 0.0;
        for (size_t rank = 0; rank < kept; ++rank) {
            sum += probs_[static_cast<size_t>(ranking[rank])];
            if (sum > threshold) return ranking[rank];
        }
        return ranking[kept - 1];
    }

    const KernelTable& kernels_;
    std::vector<float> logits_, probs_;
    std::vector<int32_t> seen_;
};

}  // namespace

void philox(uint64_t key, uint64_t counter, uint32_t (&out)[4]) {
    uint32_t k0 = static_cast<uint32_t>(key), k1 = static_cast<uint32_t>(key >> 32);
    uint32_t c[4] = {static_cast<uint32_t>(counter), static_cast<uint32_t>(counter >> 32), 0, 0};
    for (int round = 0; round < 10; ++round) {
        const uint64_t p0 = uint64_t{0xD2511F53u} * c[0];
        const uint64_t p1 = uint64_t{0xCD9E8D57u} * c[2];
        const uint32_t next[4] = {static_cast<uint32_t>(p1 >> 32) ^ c[1] ^ k0, static_cast<uint32_t>(p1),
                                  static_cast<uint32_t>(p0 >> 32) ^ c[3] ^ k1, static_cast<uint32_t>(p0)};
        std::copy(next, next + 4, c);
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    std::copy(c, c + 4, out);
}

void sample(const SampleArgs& args) {
    const DefaultFloatMode mode;
    const KernelTable& kernels = active_kernels();
    RowSampler sampler(kernels, args.vocab);
    for (int32_t row = 0; row < args.n; ++row) {
        const float* logits = args.logits + int64_t{row} * args.vocab;
        int32_t best;
        float highest;
        kernels.argmax_f32({.x = logits, .n = args.vocab, .index = &best, .value = &highest});
        if (best < 0 || !std::isfinite(highest))
            throw Error(ErrorKind::kNonFinite, "logits: expected finite numbers, got " +
                                                   std::string(best < 0      ? "NaN"
                                                               : highest > 0 ? "+inf"
                                                                             : "-inf only") +
                                                   " in row " + std::to_string(row));
        const SampleParams& params = args.params[row];
        const int64_t begin = args.history_offsets[row], end = args.history_offsets[row + 1];
        const bool greedy = params.do_sample == 0 || params.temperature == 0.0f;
        if (!(greedy && params.repetition_penalty == 1.0f))
            best = sampler.draw(logits, params, args.history + begin, end - begin);
        args.ids[row] = best;
        if (args.logprobs != nullptr) args.logprobs[row] = sampler.logprob(logits, best);
    }
}

}  // namespace fastattn
