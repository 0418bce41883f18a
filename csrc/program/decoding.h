// Sequences that decode together: each step feeds every sequence the token that it drew in the last one.
#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "program/drawing.h"

namespace fastattn {

class Decoding {
public:
    struct Row {
        std::shared_ptr<KvCache> cache;
        int32_t token_id;              // fed next
        SampleParams params;           // of the next draw
        std::vector<int32_t> history;  // ids for the repetition penalty
        int64_t suppress;              // number of draws in which the suppressed ids count as -inf
    };

    Decoding(std::shared_ptr<DrawingExecutor> executor, std::vector<Row> rows, std::vector<int32_t> suppressed,
             bool logprobs);

    struct Drawn {
        std::vector<int32_t> ids;     // [n]
        std::vector<float> logprobs;  // [n], or empty if not requested
    };
    // Runs one step. After an error the state is unchanged. Throws as DrawingExecutor::draw does.
    Drawn draw(const std::function<bool()>& poll);

private:
    std::shared_ptr<DrawingExecutor> executor_;
    std::vector<Row> rows_;
    std::vector<int32_t> suppressed_;
    bool logprobs_;
    // Of the current step:
    std::vector<KvCache*> caches_;
    std::vector<int32_t> sequence_ends_;  // 0, 1, 2, ..., n; also the wanted rows
    std::vector<int32_t> token_ids_, positions_;
    std::vector<SampleParams> params_;
    std::vector<const int32_t*> histories_;
    std::vector<int64_t> history_lengths_, suppress_;
};

}  // namespace fastattn
