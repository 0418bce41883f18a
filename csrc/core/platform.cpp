#include "core/platform.h"

#if defined(_WIN32)
#define WIN32_LEAN_AND_MEAN
#include <io.h>
#include <malloc.h>
#include <windows.h>
#else
#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdlib>
#if defined(__linux__)
#include <sched.h>
#include <sys/syscall.h>
#endif
#endif

#include <cerrno>
#include <cstring>
#include <memory>
#include <thread>

namespace fastattn {
namespace {

constexpr size_t kLine = 64;

[[maybe_unused]] int all_cpus() {
    const unsigned cpus = std::thread::hardware_concurrency();
    return cpus > 0 ? static_cast<int>(cpus) : 1;
}

}  // namespace

#if defined(_WIN32)

std::byte* allocate_aligned(size_t bytes) {
    const size_t rounded = (bytes + kLine - 1) / kLine * kLine;
    void* const memory = _aligned_malloc(rounded, kLine);
    if (memory != nullptr) std::memset(memory, 0, rounded);
    return static_cast<std::byte*>(memory);
}
void free_aligned(std::byte* memory) {
    _aligned_free(memory);
}
std::byte* map_pages(size_t bytes) {  // large pages would need a privilege
    return static_cast<std::byte*>(VirtualAlloc(nullptr, bytes, MEM_RESERVE | MEM_COMMIT, PAGE_READWRITE));
}
void unmap_pages(std::byte* pages, size_t) {
    VirtualFree(pages, 0, MEM_RELEASE);
}

int64_t read_at(int file, void* out, size_t bytes, int64_t offset) {
    constexpr size_t kMost = size_t{1} << 30;
    const auto handle = reinterpret_cast<HANDLE>(_get_osfhandle(file));
    OVERLAPPED at{};
    at.Offset = static_cast<DWORD>(offset);
    at.OffsetHigh = static_cast<DWORD>(offset >> 32);
    DWORD got = 0;
    if (ReadFile(handle, out, static_cast<DWORD>(bytes < kMost ? bytes : kMost), &got, &at) != 0) return got;
    if (GetLastError() == ERROR_HANDLE_EOF) return 0;
    errno = EIO;
    return -1;
}

int allowed_cpus() {
    return all_cpus();
}
int current_cpu() {
    return -1;
}
void leave_cpu(int, int) {}

int64_t process_id() {
    return static_cast<int64_t>(GetCurrentProcessId());
}
// Windows does not say which thread is the main one. So it is the thread that loads this library, by importing the
// module.
const DWORD loading_thread = GetCurrentThreadId();
bool in_main_thread() {
    return GetCurrentThreadId() == loading_thread;
}
std::byte* map_file(int, size_t) {  // shared weights are only for Linux
    errno = ENOSYS;
    return nullptr;
}
int on_fork(void (*)(), void (*)(), void (*)()) {  // Windows has no fork
    return 0;
}

#else

std::byte* allocate_aligned(size_t bytes) {
    const size_t rounded = (bytes + kLine - 1) / kLine * kLine;
    void* const memory = std::aligned_alloc(kLine, rounded);
    if (memory != nullptr) std::memset(memory, 0, rounded);
    return static_cast<std::byte*>(memory);
}
void free_aligned(std::byte* memory) {
    std::free(memory);
}
// Maps one extra huge page and unmaps the unaligned ends, so that every page can be a huge page. The kernel then zeroes
// 2 MiB per fault instead of 4 KiB, and streaming reads have 512 times fewer TLB misses.
std::byte* map_pages(size_t bytes) {
    void* raw = mmap(nullptr, bytes + kHugePage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (raw == MAP_FAILED) return nullptr;
    const auto begin = reinterpret_cast<uintptr_t>(raw);
    const uintptr_t aligned = (begin + kHugePage - 1) / kHugePage * kHugePage;
    if (aligned > begin) munmap(raw, aligned - begin);
    const size_t tail = begin + kHugePage - aligned;
    if (tail > 0) munmap(reinterpret_cast<void*>(aligned + bytes), tail);
#if defined(__linux__)
    madvise(reinterpret_cast<void*>(aligned), bytes, MADV_HUGEPAGE);
#endif
    return reinterpret_cast<std::byte*>(aligned);
}
void unmap_pages(std::byte* pages, size_t bytes) {
    munmap(pages, bytes);
}
std::byte* map_file(int file, size_t bytes) {
    void* const pages = mmap(nullptr, bytes, PROT_READ, MAP_SHARED, file, 0);
    return pages == MAP_FAILED ? nullptr : static_cast<std::byte*>(pages);
}

int64_t read_at(int file, void* out, size_t bytes, int64_t offset) {
    for (;;) {
        const ssize_t got = pread(file, out, bytes, offset);
        if (got >= 0 || errno != EINTR) return got;
    }
}

#if defined(__linux__)

// On a kernel for many CPUs the mask does not fit into a cpu_set_t of 1024 bits.
int allowed_cpus() {
    for (size_t most = CPU_SETSIZE; most <= size_t{1} << 22; most *= 2) {
        const std::unique_ptr<cpu_set_t, void (*)(cpu_set_t*)> set(CPU_ALLOC(most), [](cpu_set_t* p) { CPU_FREE(p); });
        if (!set) break;
        const size_t bytes = CPU_ALLOC_SIZE(most);
        if (sched_getaffinity(0, bytes, set.get()) == 0) return CPU_COUNT_S(bytes, set.get());
        if (errno != EINVAL) break;  // EINVAL: the kernel's mask is larger
    }
    return 1;
}
int current_cpu() {
    return sched_getcpu();
}
void leave_cpu(int cpu, int wanted) {
    cpu_set_t allowed;
    if (sched_getaffinity(0, sizeof allowed, &allowed) != 0 || CPU_COUNT(&allowed) < wanted) return;
    cpu_set_t others = allowed;
    CPU_CLR(cpu, &others);
    if (CPU_COUNT(&others) > 0 && sched_setaffinity(0, sizeof others, &others) == 0)
        sched_setaffinity(0, sizeof allowed, &allowed);
}
bool in_main_thread() {
    return syscall(SYS_gettid) == getpid();
}

#else

int allowed_cpus() {
    return all_cpus();
}
int current_cpu() {
    return -1;
}
void leave_cpu(int, int) {}
bool in_main_thread() {
    return pthread_main_np() != 0;
}

#endif

int64_t process_id() {
    return getpid();
}
int on_fork(void (*before)(), void (*in_parent)(), void (*in_child)()) {
    return pthread_atfork(before, in_parent, in_child);
}

#endif

// Linux gives a process the tile registers when it asks, also in threads that are already running. Asking again changes
// nothing, and the child of a fork has them too.
int request_tile_registers() {
#if defined(__linux__) && defined(__x86_64__)
    constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0 ? 0 : errno;
#else
    return ENOSYS;
#endif
}

}  // namespace fastattn
