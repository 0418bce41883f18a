#include "kernels/linear_tiles.h"
#include "simd/flush_denormals.h"

namespace fastattn::FASTATTN_TARGET {

void linear_bfloat16(const LinearArgs& args) {
    const FlushDenormals mode;
    linear_of_target<Format::kBfloat16>(args);
}

}  // namespace fastattn::FASTATTN_TARGET
