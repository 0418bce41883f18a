// What a thread that waits for the GPU does between two checks.
#pragma once
#include <chrono>

namespace fastattn::cuda {

enum class Pause { kNone, kYield, kSleep };

// A sleep lasts at least this and about 50 microseconds more, because Linux groups timers.
inline constexpr std::chrono::microseconds kSleep{50};

// Short steps are not delayed by a sleep, and long ones by at most one percent.
constexpr Pause pause_after(std::chrono::nanoseconds waited) {
    constexpr std::chrono::microseconds kAlone{200}, kShort{10'000};
    if (waited < kAlone) return Pause::kNone;
    return waited < kShort ? Pause::kYield : Pause::kSleep;
}

}  // namespace fastattn::cuda
