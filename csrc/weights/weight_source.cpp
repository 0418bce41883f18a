#include "weights/weight_source.h"

#include <cerrno>
#include <cstring>

#include "core/platform.h"

namespace fastattn {

const std::byte* FileSource::read(int64_t first, int64_t n, std::byte* room, Failure& failure) const noexcept {
    int64_t bytes = n * row_bytes(), offset = offset_ + first * row_bytes();
    for (std::byte* out = room; bytes > 0;) {
        const int64_t got = read_at(fd_, out, static_cast<size_t>(bytes), offset);
        if (got <= 0) {
            const int error = errno;
            if (got < 0)
                failure.set(ErrorKind::kOs, [&] { return "reading tensor " + name() + ": " + std::strerror(error); });
            else
                failure.set(ErrorKind::kModelFormat, [&] {
                    return "tensor " + name() + ": the file ends " + std::to_string(bytes) + " bytes early";
                });
            return nullptr;
        }
        bytes -= got, offset += got, out += got;
    }
    return room;
}

}  // namespace fastattn
