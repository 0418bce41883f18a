#include "core/buffer.h"

#include <string>

#include "core/error.h"
#include "core/platform.h"

namespace fastattn {
namespace {

[[noreturn]] void out_of_memory(size_t bytes) {
    throw Error(ErrorKind::kOutOfMemory, "could not allocate " + std::to_string(bytes) + " bytes");
}

}  // namespace

Buffer::Buffer(size_t bytes) : bytes_(bytes) {
    if (bytes == 0) return;
    mapped_ = bytes < kHugePage ? 0 : (bytes + kHugePage - 1) / kHugePage * kHugePage;
    data_ = mapped_ > 0 ? map_pages(mapped_) : allocate_aligned(bytes);
    if (data_ == nullptr) out_of_memory(bytes);
}

Buffer::~Buffer() {
    if (mapped_ > 0)
        unmap_pages(data_, mapped_);
    else
        free_aligned(data_);
}

}  // namespace fastattn
