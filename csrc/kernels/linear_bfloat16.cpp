#include "kernels/linear.h"

namespace fastattn::FASTATTN_TARGET {

void linear_bfloat16(const LinearArgs& args) {
    linear<Format::kBfloat16>(args);
}

}  // namespace fastattn::FASTATTN_TARGET
