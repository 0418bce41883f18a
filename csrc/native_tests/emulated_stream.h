// A stream of the emulation: what is launched on it runs at once, or is noted for the graph that is being captured.
#pragma once
#include <functional>
#include <utility>
#include <vector>

#include "cuda/kernels/kernels.h"

struct CUstream_st {
    std::vector<std::function<void()>>* captured = nullptr;  // null: nothing is captured
};

namespace fastattn::cuda {

// `work` holds copies of its arguments: a captured graph runs it later, again and again. A null stream captures
// nothing.
inline void submit(Stream stream, std::function<void()> work) {
    if (stream != nullptr && stream->captured != nullptr)
        stream->captured->push_back(std::move(work));
    else
        work();
}

}  // namespace fastattn::cuda
