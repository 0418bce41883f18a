#include "kernels/linear_tiles.h"

namespace fastattn::FASTATTN_TARGET {

void linear_int4(const LinearArgs& args) {
    linear_of_target<Format::kInt4>(args);
}

}  // namespace fastattn::FASTATTN_TARGET
