// What differs between operating systems. Only these include their headers: platform.cpp, runtime/arm_features.cpp,
// bindings/python_calls.cpp, the CUDA executor and the native tests (tools/check_homes.py).
//
// Linux is tested. For macOS and Windows, this only compiles (tools/compile_elsewhere.sh).
#pragma once
#include <cstddef>
#include <cstdint>

namespace fastattn {

// Zeroed memory that starts at a cache line. Null if there is none.
std::byte* allocate_aligned(size_t bytes);
void free_aligned(std::byte* memory);
// Zeroed memory of whole huge pages, if the system has them; `bytes` is a multiple of kHugePage. Null if there is none.
inline constexpr size_t kHugePage = size_t{2} << 20;
std::byte* map_pages(size_t bytes);
void unmap_pages(std::byte* pages, size_t bytes);

// Maps the first `bytes` bytes of a file for reading, shared with all processes that map it; `unmap_pages` ends that.
// Null with errno set if the system refuses, or has no such files.
std::byte* map_file(int file, size_t bytes);

// Reads at most `bytes` bytes of a file at an offset: the number read, 0 at its end, or -1 with errno set.
int64_t read_at(int file, void* out, size_t bytes, int64_t offset);

// The number of CPUs that this process may use, at least 1.
int allowed_cpus();
// The CPU of the calling thread, or -1 if unknown.
int current_cpu();
// Moves the calling thread from `cpu` to another allowed CPU if at least `wanted` CPUs are allowed and the system can.
void leave_cpu(int cpu, int wanted);

int64_t process_id();
bool in_main_thread();

// Calls the functions before a fork, and after it in the parent and in the child. Returns 0, or an errno if there is no
// memory to register them.
int on_fork(void (*before)(), void (*in_parent)(), void (*in_child)());

// Asks for the tile registers of AMX, for all threads. Returns 0, or the errno of the refusal.
int request_tile_registers();

}  // namespace fastattn
