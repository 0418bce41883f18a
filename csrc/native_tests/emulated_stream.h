// A stream of the emulation: a launch runs at once, or is recorded for the graph being captured.
#pragma once
#include <functional>
#include <utility>
#include <vector>

#include "cuda/kernels/kernels.h"

struct CUstream_st {
    std::vector<std::function<void()>>* captured = nullptr;  // null: no capture
};

namespace fastattn::cuda {

// `work` owns copies of its arguments, because a captured graph runs it later, again and again. A null stream captures
// nothing.
inline void submit(Stream stream, std::function<void()> work) {
    if (stream != nullptr && stream->captured != nullptr)
        stream->captured->push_back(std::move(work));
    else
        work();
}

}  // namespace fastattn::cuda
