#include "kernels/linear.h"

namespace fastattn::FASTATTN_TARGET {

void linear_float32(const LinearArgs& args) {
    linear<Format::kFloat32>(args);
}

}  // namespace fastattn::FASTATTN_TARGET
