// A mutex that throws instead of deadlocking when its owner locks it again. This happens if the poll of a step runs a
// Python signal handler that starts another step, or if a function that computes weights uses their engine.
#pragma once
#include <atomic>
#include <mutex>
#include <thread>

#include "core/error.h"

namespace fastattn {

class OwnedMutex {
public:
    void lock() {
        const std::thread::id self = std::this_thread::get_id();
        if (owner_.load(std::memory_order_relaxed) == self)
            throw Error(
                ErrorKind::kInput,
                "expected no call within a call of the same thread; do not call fastattn in a signal handler or in a "
                "function that computes weights");
        mutex_.lock();
        owner_.store(self, std::memory_order_relaxed);
    }
    void unlock() {
        owner_.store(std::thread::id(), std::memory_order_relaxed);
        mutex_.unlock();
    }

private:
    std::mutex mutex_;
    std::atomic<std::thread::id> owner_{};
};

}  // namespace fastattn
