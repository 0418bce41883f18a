#include "kernels/linear.h"

namespace fastattn::FASTATTN_TARGET {

void linear_int4(const LinearArgs& args) {
    linear<Format::kInt4>(args);
}

}  // namespace fastattn::FASTATTN_TARGET
