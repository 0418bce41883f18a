// Preloaded by test_allocations.py: fails the n-th allocation of C++ code, or all from there on. Python and Rust allocate
// by malloc and have nothing to do with it.
#include <dlfcn.h>
#include <sys/mman.h>

#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <new>

namespace {

std::atomic<long> left{0}, seen{0}, live{0};
std::atomic<bool> counting{false}, all_after{false};

bool fails() {
    if (!counting) return false;
    ++seen;
    const long now = --left;
    return now == 0 || (now < 0 && all_after);
}

void* allocate(std::size_t bytes, std::size_t alignment) noexcept {
    if (fails()) return nullptr;
    void* memory = nullptr;
    if (posix_memalign(&memory, alignment < 16 ? 16 : alignment, bytes) != 0) return nullptr;
    ++live;
    return memory;
}

void* or_throw(void* memory) {
    if (memory == nullptr) throw std::bad_alloc();
    return memory;
}

void release(void* memory) noexcept {
    if (memory != nullptr) --live;
    std::free(memory);
}

}  // namespace

extern "C" void fail_at(long n, int and_all_after) {
    seen = 0, left = n, all_after = and_all_after != 0, counting = true;
}
// Returns how many allocations there were since fail_at.
extern "C" long stop_failing() {
    counting = false;
    return seen;
}
extern "C" long live_blocks() {
    return live;
}

void* operator new(std::size_t n) {
    return or_throw(allocate(n, 1));
}
void* operator new[](std::size_t n) {
    return or_throw(allocate(n, 1));
}
void* operator new(std::size_t n, std::align_val_t a) {
    return or_throw(allocate(n, static_cast<std::size_t>(a)));
}
void* operator new[](std::size_t n, std::align_val_t a) {
    return or_throw(allocate(n, static_cast<std::size_t>(a)));
}
void* operator new(std::size_t n, const std::nothrow_t&) noexcept {
    return allocate(n, 1);
}
void* operator new[](std::size_t n, const std::nothrow_t&) noexcept {
    return allocate(n, 1);
}
void operator delete(void* p) noexcept {
    release(p);
}
void operator delete[](void* p) noexcept {
    release(p);
}
void operator delete(void* p, std::size_t) noexcept {
    release(p);
}
void operator delete[](void* p, std::size_t) noexcept {
    release(p);
}
void operator delete(void* p, std::align_val_t) noexcept {
    release(p);
}
void operator delete[](void* p, std::align_val_t) noexcept {
    release(p);
}
void operator delete(void* p, std::size_t, std::align_val_t) noexcept {
    release(p);
}
void operator delete[](void* p, std::size_t, std::align_val_t) noexcept {
    release(p);
}

// Buffers of the extension come from here where they are small ...
extern "C" void* aligned_alloc(std::size_t alignment, std::size_t bytes) noexcept {
    void* memory = nullptr;
    return fails() || posix_memalign(&memory, alignment, bytes) != 0 ? nullptr : memory;
}

// ... and from here where they are large. Python maps memory, too.
extern "C" void* mmap(void* at, std::size_t bytes, int protection, int flags, int fd, off_t offset) noexcept {
    using Map = void* (*)(void*, std::size_t, int, int, int, off_t);
    static const Map real = reinterpret_cast<Map>(dlsym(RTLD_NEXT, "mmap"));
    Dl_info caller;
    if (counting && dladdr(__builtin_return_address(0), &caller) != 0 &&
        std::strstr(caller.dli_fname, "fastattn") != nullptr && fails()) {
        errno = ENOMEM;
        return MAP_FAILED;
    }
    return real(at, bytes, protection, flags, fd, offset);
}
