#pragma once
#include "simd/vec.h"

namespace fastattn::FASTATTN_TARGET {

inline constexpr int kMeasureSums = kTileVecs == 4 ? 16 : 6;  // enough to hide the latency, few enough for registers
inline constexpr int kMeasureSteps = 4;

}  // namespace fastattn::FASTATTN_TARGET
