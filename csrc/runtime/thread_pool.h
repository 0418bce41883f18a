// One pool of threads per model. A parallel region runs one function on every thread; inside it, threads meet at cheap
// barriers and take chunks of work from counters, so a whole model step is one region.
#pragma once
#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace fastattn {

// What one thread knows of the region it runs in.
class Team {
public:
    int index() const { return index_; }
    int size() const { return size_; }

    // All threads of the region wait for each other.
    void barrier();

    // Calls run(chunk) for chunks [0, n), each on one thread, in rising order per thread. All threads of the region
    // must come here; they do not wait for each other at the end. After a cancel the remaining chunks are not run. At
    // most kCounters calls between two barriers.
    template <class F>
    void for_chunks(int64_t n, const F& run) {
        std::atomic<int64_t>& taken = next_counter();
        for (int64_t chunk = index_; chunk < n; chunk = size_ + taken.fetch_add(1, std::memory_order_relaxed)) {
            if (stopped()) return;
            run(chunk);
        }
    }

    // The same as run(chunk, next), where `next` is the chunk that this thread runs afterwards, n or above: none.
    // Surely so but for the last 2 * size() ones: those are taken when they are run, so that threads end together.
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
    explicit ThreadPool(int threads);  // throws Error(kInput) below 1, Error(kOutOfMemory) if the threads cannot be had
    ~ThreadPool();
    ThreadPool(const ThreadPool&) = delete;
    ThreadPool& operator=(const ThreadPool&) = delete;

    int size() const { return size_; }

    // Runs `body`, which must not throw, once on every thread; the caller is thread 0. `poll` is called by the caller
    // every 50 ms or so; if it returns true the region stops. Returns false if it was stopped, as it is in the child of
    // a fork that `poll` made: the other threads do not exist there. One caller at a time.
    bool run(const std::function<void(Team&)>& body, const std::function<bool()>& poll = {});

    // The same on the calling thread alone, for work too small to be worth waking anyone.
    bool run_alone(const std::function<void(Team&)>& body, const std::function<bool()>& poll = {});

    // Stops the region that is running, if any.
    void cancel();

private:
    bool run_on(int threads, const std::function<void(Team&)>& body, const std::function<bool()>& poll);
    int size_;
    std::unique_ptr<Team::Shared> shared_;
};

// Rises in the child of every fork: pools made before have no threads there and must be made anew.
uint64_t fork_generation();

// Held while a pool that belongs to a process is looked up or made, and while a step sets out its memory. A fork waits
// for it, so that no child finds it locked, or what it guards half done, by a thread that does not exist there. Whoever
// holds it must not wait for Python's GIL: a fork has that.
std::mutex& start_mutex();

}  // namespace fastattn
