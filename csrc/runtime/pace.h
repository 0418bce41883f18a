// Decides whether a step runs on all threads or on the caller alone. If other programs use a core, every barrier may
// wait a time slice for the thread that lost it, and a short step takes a hundred times as long as on one thread.
// Results do not depend on the number of threads, so the pace of the last steps may decide.
#pragma once
#include <algorithm>
#include <cstdint>

namespace fastattn {

class Pace {
public:
    // Whether the next step, with this many rows of tokens, runs on the caller alone.
    bool alone(int64_t rows) const { return of(rows).left_alone > 0; }

    // Records the time of a step with `work` multiply-adds.
    void took(int64_t rows, int64_t work, double seconds, bool alone) {
        Kind& kind = kinds_[index(rows)];
        const double pace = seconds / static_cast<double>(std::max<int64_t>(work, 1));
        if (alone) {
            // The first step alone shows whether running alone pays off. The others only count down.
            if (kind.probing && pace > kWorthIt * kind.slow) kind = {.best = kind.best};
            kind.probing = false;
            if (kind.left_alone > 0) --kind.left_alone;
            return;
        }
        const bool slow = kind.best > 0.0 && seconds > kLate && pace > kSlow * kind.best;
        // The best pace decays, because the machine and the lengths of texts change.
        kind.best = kind.best > 0.0 ? std::min(pace, kind.best * kFading) : pace;
        if (!slow) {
            kind.slow_steps = 0, kind.patience = kFirstAlone;
            return;
        }
        kind.slow = pace;
        // After a run of steps alone, a single slow step is enough to return to them.
        if (++kind.slow_steps < kSlowSteps && kind.patience == kFirstAlone) return;
        kind.left_alone = kind.patience;
        kind.patience = std::min<int64_t>(2 * kind.patience, kMostAlone);
        kind.probing = true;
    }

private:
    static constexpr double kLate = 0.001;                         // seconds; a shorter step had no delay
    static constexpr double kSlow = 4.0;                           // times the best pace
    static constexpr double kWorthIt = 0.7;                        // times the pace on all threads
    static constexpr double kFading = 1.01;                        // per step
    static constexpr int kSlowSteps = 3;                           // in a row
    static constexpr int64_t kFirstAlone = 32, kMostAlone = 2048;  // steps

    // Steps with few rows read weights, steps with many rows multiply. Each kind has its own pace.
    struct Kind {
        double best = 0.0, slow = 0.0;  // seconds per multiply-add on all threads
        int slow_steps = 0;
        int64_t left_alone = 0, patience = kFirstAlone;
        bool probing = false;
    };
    static constexpr int kKinds = 4;
    static int index(int64_t rows) { return rows < 2 ? 0 : rows < 8 ? 1 : rows < 32 ? 2 : 3; }
    const Kind& of(int64_t rows) const { return kinds_[index(rows)]; }
    Kind kinds_[kKinds];
};

}  // namespace fastattn
