#include "kernels/linear_tiles.h"

namespace fastattn::FASTATTN_TARGET {

void linear_int8(const LinearArgs& args) {
    linear_of_target<Format::kInt8>(args);
}

}  // namespace fastattn::FASTATTN_TARGET
