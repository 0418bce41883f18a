#pragma once
#include "simd/vec.h"

namespace fastattn::FASTATTN_TARGET {

inline constexpr int kMeasureSums = kTileRows * kTileVecs;
inline constexpr int kMeasureSteps = 4;

}  // namespace fastattn::FASTATTN_TARGET
