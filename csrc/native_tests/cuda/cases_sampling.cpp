// Sampling: on the same logits the ids are those of the CPU's sampler, and so are the bits of their log-probabilities.
#include <algorithm>

#include "core/error.h"
#include "native_tests/cuda/testing.h"
#include "sampling/sampler.h"

namespace fastattn::cuda::tests {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr int kVocabs[] = {1, 5, 16, 17, 70, 1000, 1027};

// Rows of logits of several kinds.
struct Logits {
    const char* name;
    float (*at)(int row, int id);
};
float spread(int row, int id) {
    return 4.0f * number_at(static_cast<uint64_t>(row), static_cast<uint64_t>(id));
}
const Logits kLogits[] = {{"spread", spread},
                          {"with many ties", [](int row, int id) { return std::floor(2.0f * spread(row, id)) / 4.0f; }},
                          {"all alike", [](int, int) { return -1.5f; }},
                          {"with -inf", [](int row, int id) { return id % 5 == 1 ? -kInfinity : spread(row, id); }},
                          {"with one high", [](int row, int id) { return id == 3 * row ? 90.0f : spread(row, id); }},
                          {"with zeros of both signs", [](int row, int id) {
                               return id % 3 == 0 ? 0.0f : id % 3 == 1 ? -0.0f : -std::fabs(spread(row, id));
                           }}};

std::vector<SampleParams> all_params() {
    std::vector<SampleParams> params;
    for (const float temperature : {0.0f, 1.0f, 0.7f, 5.0f, 1e-30f, 1e30f})
        for (const int top_k : {0, 1, 7, 50})
            for (const float top_p : {1.0f, 0.9f, 0.3f, 1e-6f})
                for (const float min_p : {0.0f, 0.2f})
                    for (const float penalty : {1.0f, 1.3f}) {
                        const uint64_t i = params.size();
                        params.push_back({.temperature = temperature,
                                          .top_p = top_p,
                                          .min_p = min_p,
                                          .repetition_penalty = penalty,
                                          .top_k = top_k,
                                          .do_sample = 1,
                                          .seed = bits_at(11, i),
                                          .counter = i});
                    }
    params[1].do_sample = 0;
    return params;
}

// One row of logits for each of `params`, with histories and suppressed ids.
class SampledRows {
public:
    SampledRows(const Logits& kind, int vocab, const std::vector<SampleParams>& params)
        : vocab_(vocab),
          rows_(static_cast<int>(params.size())),
          params_(params),
          logits_(rows_ * int64_t{vocab + kPadding}),
          histories_(rows_ * int64_t{kHistory}),
          lengths_(rows_),
          suppress_(rows_) {
        for (int row = 0; row < rows_; ++row) {
            for (int id = 0; id < vocab; ++id) {
                plain_.push_back(kind.at(row, id));
                logits_[row * int64_t{vocab + kPadding} + id] = plain_.back();
            }
            for (int i = 0; i < kHistory; ++i)  // some ids twice
                histories_[row * kHistory + i] =
                    static_cast<int32_t>(bits_at(21, static_cast<uint64_t>(row * 4 + i % 4)) % vocab);
            lengths_[row] = row % 7;
            suppress_[row] = vocab > 5 && row % 3 == 0 ? 2 : 0;
        }
    }

    void compare(Check& check, const std::string& name) {
        std::vector<int32_t> expected(static_cast<size_t>(rows_));
        std::vector<float> expected_logprobs(static_cast<size_t>(rows_));
        on_cpu(expected.data(), expected_logprobs.data());
        const int32_t most = rows_ + 2;
        Memory<float> scratch(sample_scratch_floats(most, vocab_)), logprobs(most);
        Memory<int32_t> ids(most), status(most);
        const Memory<int32_t> count = {rows_};
        launch_sample({.logits = logits_.data(),
                       .logits_stride = vocab_ + kPadding,
                       .rows = {.count = count.data(), .most = most},
                       .vocab = vocab_,
                       .params = params_.data(),
                       .histories = histories_.data(),
                       .history_lengths = lengths_.data(),
                       .history_stride = kHistory,
                       .suppressed = suppressed_.data(),
                       .n_suppressed = 2,
                       .suppress = suppress_.data(),
                       .scratch = scratch.data(),
                       .ids = ids.data(),
                       .logprobs = logprobs.data(),
                       .status = status.data()},
                      nullptr);
        check.same(name + ", ids", ids.data(), expected.data(), rows_);
        check.same(name + ", logprobs", logprobs.data(), expected_logprobs.data(), rows_);
        const std::vector<int32_t> fine(static_cast<size_t>(rows_), 0);
        check.same(name + ", status", status.data(), fine.data(), rows_);
        check.that(name + ": wrote after the last row", ids[rows_] == -1 && status[rows_] == -1);
    }

private:
    static constexpr int kPadding = 3, kHistory = 6;

    void on_cpu(int32_t* ids, float* logprobs) const {
        std::vector<const int32_t*> histories;
        std::vector<int64_t> lengths, suppress;
        for (int row = 0; row < rows_; ++row) {
            histories.push_back(histories_.data() + row * kHistory);
            lengths.push_back(lengths_[row]);
            suppress.push_back(suppress_[row]);
        }
        fastattn::sample(plain_.data(), {.n = rows_,
                                         .vocab = vocab_,
                                         .params = params_.data(),
                                         .histories = histories.data(),
                                         .history_lengths = lengths.data(),
                                         .suppressed = suppressed_.data(),
                                         .n_suppressed = 2,
                                         .suppress = suppress.data(),
                                         .ids = ids,
                                         .logprobs = logprobs});
    }

    int vocab_, rows_;
    const std::vector<SampleParams>& params_;
    Memory<float> logits_;
    std::vector<float> plain_;  // the same without padding
    Memory<int32_t> histories_, lengths_, suppress_;
    Memory<int32_t> suppressed_ = {4, 0};
};

void as_cpu(Check& check) {
    const std::vector<SampleParams> all = all_params();
    size_t part = 0;  // each case uses another part of all parameters, because the emulation is slow
    for (const int vocab : kVocabs)
        for (const Logits& kind : kLogits) {
            constexpr size_t kParts = 19;
            std::vector<SampleParams> every;
            for (size_t i = part++ % kParts; i < all.size(); i += kParts) every.push_back(all[i]);
            SampledRows(kind, vocab, every)
                .compare(check, std::string("sampling ") + kind.name + ", vocab " + std::to_string(vocab));
        }
}

// Only the seed and the counter decide what is drawn. Over many counters, ids come as often as they should.
void frequencies(Check& check) {
    constexpr int kVocab = 4, kDraws = 1024;
    const float probabilities[kVocab] = {0.5f, 0.25f, 0.125f, 0.125f};
    Memory<float> logits(kDraws * kVocab), scratch(sample_scratch_floats(kDraws, kVocab));
    std::vector<SampleParams> params;
    for (int row = 0; row < kDraws; ++row) {
        for (int id = 0; id < kVocab; ++id) logits[row * kVocab + id] = std::log(probabilities[id]);
        params.push_back({.temperature = 1.0f,
                          .top_p = 1.0f,
                          .min_p = 0.0f,
                          .repetition_penalty = 1.0f,
                          .top_k = 0,
                          .do_sample = 1,
                          .seed = 5,
                          .counter = static_cast<uint64_t>(row)});
    }
    Memory<int32_t> ids(kDraws), status(kDraws);
    launch_sample({.logits = logits.data(),
                   .logits_stride = kVocab,
                   .rows = {.count = nullptr, .most = kDraws},
                   .vocab = kVocab,
                   .params = params.data(),
                   .histories = nullptr,
                   .history_lengths = nullptr,
                   .history_stride = 0,
                   .suppressed = nullptr,
                   .n_suppressed = 0,
                   .suppress = nullptr,
                   .scratch = scratch.data(),
                   .ids = ids.data(),
                   .logprobs = nullptr,
                   .status = status.data()},
                  nullptr);
    int counts[kVocab] = {};
    for (int row = 0; row < kDraws; ++row)
        if (ids[row] >= 0 && ids[row] < kVocab) ++counts[ids[row]];
    for (int id = 0; id < kVocab; ++id) {
        const double p = probabilities[id];
        check.within("frequency", counts[id], p * kDraws, 5 * std::sqrt(p * (1 - p) * kDraws));  // five deviations
    }
}

// Launches the kernel for greedy rows only, or the kernel for all kinds of rows.
void launch_greedy(bool sampled, Memory<float>& logits, int vocab, const cuda::Rows& rows, Memory<int32_t>& ids,
                   Memory<int32_t>& status) {
    if (!sampled)
        return launch_argmax({.logits = logits.data(),
                              .logits_stride = vocab,
                              .rows = rows,
                              .vocab = vocab,
                              .ids = ids.data(),
                              .status = status.data()},
                             nullptr);
    const std::vector<SampleParams> greedy(static_cast<size_t>(rows.most), SampleParams{.temperature = 1.0f,
                                                                                        .top_p = 1.0f,
                                                                                        .min_p = 0.0f,
                                                                                        .repetition_penalty = 1.0f,
                                                                                        .top_k = 0,
                                                                                        .do_sample = 0,
                                                                                        .seed = 0,
                                                                                        .counter = 0});
    Memory<float> scratch(sample_scratch_floats(rows.most, vocab));
    launch_sample({.logits = logits.data(),
                   .logits_stride = vocab,
                   .rows = rows,
                   .vocab = vocab,
                   .params = greedy.data(),
                   .histories = nullptr,
                   .history_lengths = nullptr,
                   .history_stride = 0,
                   .suppressed = nullptr,
                   .n_suppressed = 0,
                   .suppress = nullptr,
                   .scratch = scratch.data(),
                   .ids = ids.data(),
                   .logprobs = nullptr,
                   .status = status.data()},
                  nullptr);
}

// Rows that cannot be drawn from, and the highest logit of the others.
void argmax(Check& check) {
    for (const int vocab : {1, 31, 33, 700, 1027}) {
        const float nan = std::numeric_limits<float>::quiet_NaN();
        constexpr int kRows = 6;
        Memory<float> logits(kRows * int64_t{vocab});
        for (int row = 0; row < kRows; ++row)
            for (int id = 0; id < vocab; ++id)
                logits[row * int64_t{vocab} + id] = std::floor(spread(row, id));  // with ties
        logits[1 * vocab + vocab / 2] = nan;
        logits[2 * vocab + vocab - 1] = kInfinity;
        for (int id = 0; id < vocab; ++id) logits[3 * int64_t{vocab} + id] = -kInfinity;
        logits[4 * vocab] = -kInfinity;
        logits[4 * vocab + vocab - 1] = 77.0f;
        const int32_t statuses[kRows] = {0, 1, 2, 3, 0, 0};
        int32_t expected[kRows];
        for (int row = 0; row < kRows; ++row) {
            const float* begin = logits.data() + row * vocab;
            expected[row] =
                statuses[row] != 0 ? -1 : static_cast<int32_t>(std::max_element(begin, begin + vocab) - begin);
        }
        for (const bool sampled : {false, true}) {
            Memory<int32_t> ids(kRows + 1), status(kRows + 1);
            const Memory<int32_t> count = {kRows};
            launch_greedy(sampled, logits, vocab, {.count = count.data(), .most = kRows + 1}, ids, status);
            check.same("argmax, ids", ids.data(), expected, kRows);
            check.same("argmax, status", status.data(), statuses, kRows);
        }
    }
}

}  // namespace

const std::vector<Case> kSamplingCases = {
    {"sampling_as_cpu", as_cpu}, {"sampling_frequencies", frequencies}, {"argmax", argmax}};

}  // namespace fastattn::cuda::tests
