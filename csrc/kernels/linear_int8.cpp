#include "kernels/linear.h"

namespace fastattn::FASTATTN_TARGET {

void linear_int8(const LinearArgs& args) {
    linear<Format::kInt8>(args);
}

}  // namespace fastattn::FASTATTN_TARGET
