#include "kernels/linear_tiles.h"
#include "simd/float_mode.h"

namespace fastattn::FASTATTN_TARGET {

void linear_bfloat16(const LinearArgs& args) {
    const FlushDenormals mode;
    linear_of_target<Format::kBfloat16>(args);
}

}  // namespace fastattn::FASTATTN_TARGET
