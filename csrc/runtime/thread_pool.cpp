#include "runtime/thread_pool.h"

#include <algorithm>
#include <chrono>
#include <exception>
#include <string>

#include "core/error.h"
#include "core/platform.h"
#include "simd/float_mode.h"

namespace fastattn {
namespace {

// Barriers of a step are microseconds apart, and steps are tens of microseconds apart. A waiting thread spins that
// long, then yields its core (on a busy machine the awaited thread may need it), then sleeps.
constexpr int kSpins = 2000;
constexpr int kYields = 20;
constexpr double kLongRegion = 0.002;  // seconds

using Clock = std::chrono::steady_clock;

// Says when the caller must poll. Reading the clock takes a tenth of the time of a small chunk. So while checks follow
// each other closely, only every eighth check reads it.
class PollTimer {
public:
    void start(Clock::time_point now) {
        last_ = now;
        next_ = now + kPeriod;
        skip_ = 0;
    }
    bool due() {
        if (skip_ > 0) return --skip_, false;
        const auto now = Clock::now();
        skip_ = now - last_ < kClose ? 7 : 0;
        last_ = now;
        if (now < next_) return false;
        next_ = now + kPeriod;
        return true;
    }

private:
    static constexpr auto kPeriod = std::chrono::milliseconds(50);
    static constexpr auto kClose = std::chrono::microseconds(100);  // eight checks
    Clock::time_point last_, next_;
    int skip_ = 0;
};

void relax() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

// Waits until `word` differs from `old`.
void wait_for_change(const std::atomic<uint32_t>& word, uint32_t old) {
    for (int spin = 0; spin < kSpins; ++spin) {
        if (word.load(std::memory_order_acquire) != old) return;
        relax();
    }
    for (int i = 0; i < kYields; ++i) {
        if (word.load(std::memory_order_acquire) != old) return;
        std::this_thread::yield();
    }
    while (word.load(std::memory_order_acquire) == old) word.wait(old, std::memory_order_acquire);
}

}  // namespace

struct Team::Shared {
    struct alignas(64) Counter {
        std::atomic<int64_t> value{0};
    };
    struct alignas(64) Cpu {
        std::atomic<int> number{-1};
    };
    std::vector<Cpu> cpus;        // where each thread started its last region
    double last_seconds = 0.0;    // duration of the last region
    Counter counters[kCounters];  // of for_chunks since the last barrier; the last thread to arrive clears those used

    alignas(64) std::atomic<uint32_t> arrived{0};
    alignas(64) std::atomic<uint32_t> barrier_turn{0};
    alignas(64) std::atomic<uint32_t> region{0};  // incremented for each region; workers wait for it
    std::atomic<bool> stop{false};
    std::atomic<bool> quit{false};
    const std::function<void(Team&)>* body = nullptr;
    const std::function<bool()>* poll = nullptr;
    alignas(64) PollTimer poll_timer;  // apart from `stop`, which the others read while thread 0 writes this
    std::vector<std::thread> workers;
    HomeProcess home;

    // Clears the first `used` counters. Clearing the others would only move their cache lines between cores.
    void clear_counters(uint32_t used) {
        for (uint32_t i = 0; i < std::min(used, kCounters); ++i) counters[i].value.store(0, std::memory_order_relaxed);
    }

    void end_workers() {
        quit.store(true);
        region.fetch_add(1, std::memory_order_seq_cst);  // before notify_all, as in barrier()
        region.notify_all();
        for (auto& worker : workers) worker.join();
    }

    // Moves a worker away from a CPU that it shares with the caller or with the previous worker, because each would get
    // half of the CPU. Most operating systems do this themselves within milliseconds, but on a small virtual machine,
    // two busy threads may stay together for seconds. After a short region the worker stays: another program may keep
    // the other CPU busy, and waiting for its time slices would take longer than sharing this CPU.
    void part(int index, int size) {
        const int cpu = current_cpu();
        cpus[index].number.store(cpu, std::memory_order_relaxed);
        if (index == 0 || cpu < 0 || last_seconds < kLongRegion) return;
        for (const int other : {0, index - 1})
            if (cpus[other].number.load(std::memory_order_relaxed) == cpu) return leave_cpu(cpu, size);
    }

    void run_body(int index, int size) noexcept {
        const DefaultFloatMode mode;
        if (index > 0) part(index, size);
        Team team(*this, index, size);
        (*body)(team);
        team.barrier();
    }
};

std::atomic<int64_t>& Team::next_counter() {
    return shared_.counters[phase_++ % kCounters].value;
}

bool Team::stopped() {
    if (shared_.stop.load(std::memory_order_relaxed)) return true;
    if (index_ == 0 && *shared_.poll && shared_.poll_timer.due()) {
        if ((*shared_.poll)()) shared_.stop.store(true);
        if (!shared_.home.here()) go_on_alone();
    }
    return shared_.stop.load(std::memory_order_relaxed);
}

// A signal handler forked, and this is the child. The other threads do not exist here, and their writes are incomplete.
// The region ends without them.
void Team::go_on_alone() {
    shared_.stop.store(true);
    shared_.arrived.store(0);
    size_ = 1;
}

void Team::barrier() {
    const uint32_t used = phase_;
    phase_ = 0;
    if (size_ == 1) return shared_.clear_counters(used);
    const uint32_t turn = shared_.barrier_turn.load(std::memory_order_relaxed);
    if (shared_.arrived.fetch_add(1, std::memory_order_acq_rel) == static_cast<uint32_t>(size_ - 1)) {
        shared_.arrived.store(0, std::memory_order_relaxed);
        shared_.clear_counters(used);
        // Not just a release: notify_all checks for sleepers, and must not check before the store is visible.
        shared_.barrier_turn.store(turn + 1, std::memory_order_seq_cst);
        shared_.barrier_turn.notify_all();
    } else {
        wait_for_change(shared_.barrier_turn, turn);
    }
}

ThreadPool::ThreadPool(int threads) : size_(threads), shared_(std::make_unique<Team::Shared>()) {
    if (threads < 1) throw Error(ErrorKind::kInput, "threads: expected at least 1, got " + std::to_string(threads));
    Team::Shared* const shared = shared_.find();
    shared->workers.reserve(static_cast<size_t>(threads - 1));
    shared->cpus = std::vector<Team::Shared::Cpu>(static_cast<size_t>(threads));
    try {
        for (int index = 1; index < threads; ++index) {
            shared->workers.emplace_back([shared, index, threads] {
                for (uint32_t seen = 0;;) {
                    wait_for_change(shared->region, seen);
                    seen = shared->region.load(std::memory_order_acquire);
                    if (shared->quit.load()) return;
                    shared->run_body(index, threads);
                }
            });
        }
    } catch (const std::exception&) {  // std::system_error, or out of memory
        const size_t started = shared->workers.size() + 1;
        shared->end_workers();
        throw Error(ErrorKind::kOutOfMemory, "threads: expected to start " + std::to_string(threads) + ", got " +
                                                 std::to_string(started) + "; use fewer threads");
    }
}

ThreadPool::~ThreadPool() {
    if (Team::Shared* const shared = shared_.find()) shared->end_workers();
}

bool ThreadPool::run_on(int threads, const std::function<void(Team&)>& body, const std::function<bool()>& poll) {
    Team::Shared* const found = shared_.find();
    if (found == nullptr) return false;
    Team::Shared& shared = *found;
    shared.body = &body;
    shared.poll = &poll;
    const auto start = Clock::now();
    shared.poll_timer.start(start);
    shared.stop.store(false);
    shared.clear_counters(Team::kCounters);  // after a stop, some may be in use
    if (threads > 1) {
        shared.part(0, threads);
        shared.region.fetch_add(1, std::memory_order_seq_cst);  // before notify_all, as in barrier()
        shared.region.notify_all();
    }
    shared.run_body(0, threads);
    // All other threads have left the body and wait for the next region.
    shared.last_seconds = std::chrono::duration<double>(Clock::now() - start).count();
    return !shared.stop.load();
}

void ThreadPool::cancel() {
    if (Team::Shared* const shared = shared_.find()) shared->stop.store(true);
}

}  // namespace fastattn
