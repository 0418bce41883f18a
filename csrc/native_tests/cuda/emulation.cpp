// The scheduler of native_tests/cuda_emulation.h.
#include <setjmp.h>
#include <ucontext.h>

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <vector>

#include "cuda/kernels/device.h"

namespace fastattn::cuda::emulation {
namespace {

constexpr size_t kStackBytes = 256 * 1024;
constexpr int kMostThreads = 1024;
constexpr int64_t kMostSharedBytes = 99 * 1024;  // the smallest limit of all devices: sm_86 and sm_89

struct Barrier {
    int arrived = 0;
    uint64_t generation = 0;
    void arrive(int expected) {
        if (++arrived != expected) return;
        arrived = 0;
        ++generation;
    }
};

struct Copy {
    void* to;
    const void* from;
};

// A fiber with a stack of its own. `context` enters it; later switches are jumps, which need no system call.
struct Fiber {
    ucontext_t context;
    jmp_buf place_left;
    bool started = false;
    std::unique_ptr<char[]> stack;
    Current place;
    const Barrier* waits_for = nullptr;
    uint64_t generation = 0;  // of that barrier, when the wait began
    bool done = false;
    uint64_t exchanges = 0;
    std::vector<Copy> copies;               // not committed yet
    std::vector<std::vector<Copy>> groups;  // oldest first

    bool ready() const { return !done && (waits_for == nullptr || waits_for->generation != generation); }
};

struct Warp {
    Barrier barrier;
    int left = 0;  // lanes whose thread has exited
    const char* what = nullptr;
    Slot slots[2][kWarp];
};

ucontext_t scheduler;
jmp_buf scheduler_left;
std::vector<Fiber> fibers;
std::vector<Warp> warps;
Barrier whole_block;
int n_threads = 0, n_live = 0, running = 0;
const char* kernel_name = "";
void (*body)(const void*) = nullptr;
const void* body_data = nullptr;

void enter(Fiber& fiber) {
    if (_setjmp(scheduler_left) != 0) return;
    if (fiber.started) _longjmp(fiber.place_left, 1);
    fiber.started = true;
    swapcontext(&scheduler, &fiber.context);
}
void leave(Fiber& fiber) {
    if (_setjmp(fiber.place_left) == 0) _longjmp(scheduler_left, 1);
}

void fiber_main() {
    body(body_data);
    Fiber& fiber = fibers[static_cast<size_t>(running)];
    if (!fiber.copies.empty()) fail("asynchronous copies were never committed");
    fiber.done = true;
    --n_live;
    ++warps[static_cast<size_t>(running / kWarp)].left;
    if (whole_block.arrived > 0 && whole_block.arrived == n_live) {
        whole_block.arrived = 0;
        ++whole_block.generation;
    }
    leave(fiber);
}

void wait_for(const Barrier& barrier, uint64_t generation) {
    if (barrier.generation != generation) return;
    Fiber& fiber = fibers[static_cast<size_t>(running)];
    fiber.waits_for = &barrier;
    fiber.generation = generation;
    leave(fiber);
    fiber.waits_for = nullptr;
}

// Position in the order of `count` threads: forward, backward, or by a step that visits all.
int placed(int i, int count) {
    if (order == Order::kForward) return i;
    if (order == Order::kBackward) return count - 1 - i;
    const int step = count % 7 == 0 ? 1 : 7;
    return static_cast<int>((int64_t{i} * step + 5) % count);
}

void run_block(int threads, int x, int y, unsigned char* shared) {
    whole_block = {};
    warps.assign(static_cast<size_t>(threads / kWarp), {});
    n_threads = n_live = threads;
    for (int t = 0; t < threads; ++t) {
        Fiber& fiber = fibers[static_cast<size_t>(t)];
        fiber.place = {t, x, y, shared};
        fiber.waits_for = nullptr;
        fiber.done = fiber.started = false;
        fiber.exchanges = 0;
        fiber.copies.clear();
        fiber.groups.clear();
        if (!fiber.stack) fiber.stack = std::make_unique<char[]>(kStackBytes);
        getcontext(&fiber.context);
        fiber.context.uc_stack.ss_sp = fiber.stack.get();
        fiber.context.uc_stack.ss_size = kStackBytes;
        fiber.context.uc_link = nullptr;
        makecontext(&fiber.context, fiber_main, 0);
    }
    while (n_live > 0) {
        bool moved = false;
        for (int i = 0; i < threads; ++i) {
            running = placed(i, threads);
            Fiber& fiber = fibers[static_cast<size_t>(running)];
            if (!fiber.ready()) continue;
            moved = true;
            current = fiber.place;
            enter(fiber);
        }
        if (!moved) fail("all threads wait for others");
    }
}

}  // namespace

void fail(const char* what) {
    std::printf("%s, block (%d, %d), thread %d: %s\n", kernel_name, current.block_x, current.block_y, current.thread,
                what);
    std::fflush(stdout);
    std::abort();
}

void block_barrier() {
    const uint64_t generation = whole_block.generation;
    whole_block.arrive(n_live);
    wait_for(whole_block, generation);
}

const Slot* exchange(const char* what, const Slot& mine) {
    Fiber& fiber = fibers[static_cast<size_t>(running)];
    Warp& warp = warps[static_cast<size_t>(running / kWarp)];
    if (warp.left > 0) fail("a lane communicates with lanes that have exited");
    if (warp.barrier.arrived == 0) warp.what = what;
    if (warp.what != what && std::strcmp(warp.what, what) != 0) fail("lanes of a warp meet at different operations");
    // Two sets of slots: no lane reaches the exchange after the next one before all have read this one.
    Slot* slots = warp.slots[fiber.exchanges++ % 2];
    slots[running % kWarp] = mine;
    const uint64_t generation = warp.barrier.generation;
    warp.barrier.arrive(kWarp);
    wait_for(warp.barrier, generation);
    return slots;
}

void copy_later(void* to, const void* from) {
    std::memset(to, 0xff, 16);  // until it arrives
    fibers[static_cast<size_t>(running)].copies.push_back({to, from});
}
void commit_copies() {
    Fiber& fiber = fibers[static_cast<size_t>(running)];
    fiber.groups.push_back(std::move(fiber.copies));
    fiber.copies.clear();
}
void wait_copies(int groups) {
    Fiber& fiber = fibers[static_cast<size_t>(running)];
    while (fiber.groups.size() > static_cast<size_t>(groups)) {
        for (const Copy& copy : fiber.groups.front()) std::memcpy(copy.to, copy.from, 16);
        fiber.groups.erase(fiber.groups.begin());
    }
}

void run(const char* name, Grid grid, int threads, int64_t shared_bytes, void (*kernel)(const void*),
         const void* data) {
    kernel_name = name;
    body = kernel;
    body_data = data;
    if (threads % kWarp != 0 || threads > kMostThreads)
        fail("the number of threads is not a multiple of 32, or too large");
    if (shared_bytes > kMostSharedBytes) fail("too much shared memory");
    if (grid.y > 65535) fail("the grid has too many rows");
    if (fibers.size() < static_cast<size_t>(threads)) fibers.resize(static_cast<size_t>(threads));
    const size_t words = static_cast<size_t>(shared_bytes) / 16 + 1;
    const std::unique_ptr<Words16[]> shared(new Words16[words]);
    const auto blocks = static_cast<int>(grid.x * grid.y);
    for (int i = 0; i < blocks; ++i) {
        std::memset(static_cast<void*>(shared.get()), 0xff, words * sizeof(Words16));
        const int block = placed(i, blocks);
        run_block(threads, block % static_cast<int>(grid.x), block / static_cast<int>(grid.x),
                  reinterpret_cast<unsigned char*>(shared.get()));
    }
}

uint16_t round_bf16(float x) {
    const auto bits = std::bit_cast<uint32_t>(x);
    if (x != x) return 0x7fff;  // like the hardware's
    return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

uint16_t round_f16(float x) {
    const auto bits = std::bit_cast<uint32_t>(x);
    const auto sign = static_cast<uint16_t>(bits >> 16 & 0x8000);
    if (x != x) return 0x7fff;
    const float magnitude = std::fabs(x);
    if (magnitude >= 65520.0f) return sign | 0x7c00;
    if (magnitude < 0x1p-14f)  // a multiple of 2^-24: adds a number whose last place is 2^-24
        return static_cast<uint16_t>(sign |
                                     (std::bit_cast<uint32_t>(magnitude + 0.5f) - std::bit_cast<uint32_t>(0.5f)));
    const uint32_t m = bits & 0x7fffffff;
    return static_cast<uint16_t>(sign | ((m + 0xfff + (m >> 13 & 1)) - (uint32_t{112} << 23)) >> 13);
}

}  // namespace fastattn::cuda::emulation
