// One pool of threads per model. A parallel region runs one function on every thread. Inside it, threads meet at cheap
// barriers and take chunks of work from counters, so a whole model step is one region.
#pragma once
#include <atomic>
#include <cstdint>
#include <functional>
#include <thread>
#include <vector>

#include "runtime/fork_local.h"

namespace fastattn {

// One thread's view of the region that it runs in.
class Team {
public:
    int index() const { return index_; }
    int size() const { return size_; }

    // Waits for all threads of the region.
    void barrier();

    // Calls run(chunk) for chunks [0, n), each on one thread, in ascending order per thread. All threads of the region
    // must call it. They do not wait for each other at the end. After a cancel the remaining chunks are skipped. At
    // most kCounters calls between two barriers.
    template <class F>
    void for_chunks(int64_t n, const F& run) {
        std::atomic<int64_t>& taken = next_counter();
        for (int64_t chunk = index_; chunk < n; chunk = size_ + taken.fetch_add(1, std::memory_order_relaxed)) {
            if (stopped()) return;
            run(chunk);
        }
    }

    // Like for_chunks, but calls run(chunk, next). `next` is the chunk that this thread runs next; n or above means
    // none. It is exact except for the last 2 * size() chunks. A thread takes those only when it runs them, so that
    // threads end together.
    template <class F>
    void for_chunks_ahead(int64_t n, const F& run) {
        std::atomic<int64_t>& taken = next_counter();
        const auto take = [&] { return size_ + taken.fetch_add(1, std::memory_order_relaxed); };
        for (int64_t chunk = index_; chunk < n;) {
            if (stopped()) return;
            const bool sure = chunk + 2 * size_ < n;
            const int64_t next = sure ? take() : chunk + size_;
            run(chunk, next);
            chunk = sure ? next : take();
        }
    }

    // True if the region was cancelled. On thread 0, also polls.
    bool stopped();

private:
    friend class ThreadPool;
    static constexpr uint32_t kCounters = 8;
    struct Shared;
    Team(Shared& shared, int index, int size) : shared_(shared), index_(index), size_(size) {}
    std::atomic<int64_t>& next_counter();
    void go_on_alone();
    Shared& shared_;
    int index_, size_;
    uint32_t phase_ = 0;
};

class ThreadPool {
public:
    explicit ThreadPool(int threads);  // throws Error(kInput) below 1, Error(kOutOfMemory) if thread creation fails
    ~ThreadPool();
    ThreadPool(const ThreadPool&) = delete;
    ThreadPool& operator=(const ThreadPool&) = delete;

    int size() const { return size_; }

    // Runs `body`, which must not throw, once on every thread; the caller is thread 0. The caller calls `poll` about
    // every 50 ms and stops the region if it returns true. Returns false if the region was stopped. Also returns false
    // in the child of a fork, because the other threads do not exist there; a fork made by `poll` ends the region, and
    // after it no region starts. One caller at a time.
    bool run(const std::function<void(Team&)>& body, const std::function<bool()>& poll = {}) {
        return run_on(size_, body, poll);
    }
    // threads: size(), or 1 to use only the calling thread, for work too small to justify waking other threads.
    bool run_on(int threads, const std::function<void(Team&)>& body, const std::function<bool()>& poll);

    // Stops the running region, if any.
    void cancel();

private:
    int size_;
    ForkLocal<Team::Shared> shared_;
};

}  // namespace fastattn
