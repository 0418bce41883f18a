#include "runtime/fork_local.h"

#include <atomic>

#include "core/platform.h"

namespace fastattn {
namespace {

std::mutex starting;
std::atomic<uint64_t> forks{0};
const int fork_handler = on_fork([] { starting.lock(); }, [] { starting.unlock(); },
                                 [] {
                                     starting.unlock();
                                     forks.fetch_add(1, std::memory_order_relaxed);
                                 });

}  // namespace

std::mutex& start_mutex() {
    return starting;
}

uint64_t fork_generation() {
    return forks.load(std::memory_order_relaxed) + static_cast<uint64_t>(fork_handler);
}

}  // namespace fastattn
