// Everything from CUDA that a kernel uses, under our own names. Kernels are compiled twice: by nvcc, and by g++ against
// csrc/native_tests/cuda_emulation.h, which has the same names (the macro FASTATTN_CUDA_EMULATION names it). So their
// logic and their numbers are tested without a GPU.
//
// Compile with --fmad=false: a multiply-add is fused only if the source says fma, as on the CPU.
//
//   FA_DEVICE                         a function of a kernel, inlined
//   FA_BOTH                           a function of kernels and of the host
//   FA_KERNEL(threads)                a kernel, launched with that many threads per block
//   thread_id() block_x() block_y()   lane() and warp() follow from thread_id()
//   shared_memory()                   of the block, aligned to 16 bytes; its size is an argument of launch
//   sync_threads() sync_warp()
//   shuffle(x, lane) shuffle_xor(x, mask)    x of another lane; all lanes of the warp call it
//   ballot(condition)                 one bit per lane
//   count_bits(x) lowest_bit(x)       lowest_bit needs a nonzero number
//   add_shared(p, x)                  atomic, for uint32_t or uint64_t in shared memory
//   load_16(p) store_16(p, v)         16 bytes at once, as Words16
//   copy_async_16(to, from) copy_async_commit() copy_async_wait<groups>()
//                                     16 bytes from global to shared memory; wait leaves that many groups in flight
//   round_pair<T>(low, high)          two floats as T in a word, to nearest even
//   float_of(T)                       Bf16 or F16 to float
//   load_matrices(r, row)             four 8x8 matrices of 16 bits from shared memory: lanes 8 i to 8 i + 7 pass the
//                                     rows of matrix i; r[i] is elements 2 (lane % 4) and the next, of row lane / 4
//   load_matrices_transposed(r, row)  the same for the transposed matrices
//   mma_16x8x16<T>(c, a, b0, b1)      c += a b on tensor cores, with the fragments of PTX's mma.m16n8k16
//   exp2_fast(x)                      2^x, within 2 ulp
#pragma once
#include <cstdint>

#include "cuda/kernels/kernels.h"

#ifndef FASTATTN_CUDA_EMULATION
#include <cuda_runtime.h>

#include <string>

#include "core/error.h"

#define FA_DEVICE __device__ __forceinline__
#define FA_BOTH inline __host__ __device__
#define FA_KERNEL(threads) static __global__ void __launch_bounds__(threads)
#else
#define FA_DEVICE inline
#define FA_BOTH inline
#define FA_KERNEL(threads) static void
#endif

namespace fastattn::cuda {

struct Bf16 {
    uint16_t bits;
};
struct F16 {
    uint16_t bits;
};

struct Grid {
    int64_t x = 1, y = 1;
};

inline constexpr int kWarp = 32;

}  // namespace fastattn::cuda

#ifdef FASTATTN_CUDA_EMULATION
#include FASTATTN_CUDA_EMULATION
#else

namespace fastattn::cuda {

using Words16 = uint4;

FA_DEVICE int thread_id() {
    return static_cast<int>(threadIdx.x);
}
FA_DEVICE int block_x() {
    return static_cast<int>(blockIdx.x);
}
FA_DEVICE int block_y() {
    return static_cast<int>(blockIdx.y);
}
FA_DEVICE unsigned char* shared_memory() {
    extern __shared__ __align__(16) unsigned char memory[];
    return memory;
}
FA_DEVICE void sync_threads() {
    __syncthreads();
}
FA_DEVICE void sync_warp() {
    __syncwarp();
}

template <class T>
FA_DEVICE T shuffle(T x, int lane) {
    return __shfl_sync(0xffffffffu, x, lane);
}
template <class T>
FA_DEVICE T shuffle_xor(T x, int mask) {
    return __shfl_xor_sync(0xffffffffu, x, mask);
}
FA_DEVICE uint32_t ballot(bool condition) {
    return __ballot_sync(0xffffffffu, condition);
}
FA_DEVICE int count_bits(uint32_t x) {
    return __popc(x);
}
FA_DEVICE int lowest_bit(uint32_t x) {
    return __ffs(static_cast<int>(x)) - 1;
}
FA_DEVICE void add_shared(uint32_t* p, uint32_t x) {
    atomicAdd(p, x);
}
FA_DEVICE void add_shared(uint64_t* p, uint64_t x) {
    atomicAdd(reinterpret_cast<unsigned long long*>(p), static_cast<unsigned long long>(x));
}

FA_DEVICE Words16 load_16(const void* p) {
    return *static_cast<const uint4*>(p);
}
FA_DEVICE void store_16(void* p, Words16 v) {
    *static_cast<uint4*>(p) = v;
}
FA_DEVICE uint32_t shared_address(const void* p) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}
FA_DEVICE void copy_async_16(void* to, const void* from) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(to)), "l"(from) : "memory");
}
FA_DEVICE void copy_async_commit() {
    asm volatile("cp.async.commit_group;" ::: "memory");
}
template <int kGroups>
FA_DEVICE void copy_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(kGroups) : "memory");
}

FA_DEVICE uint32_t word_of(float x) {
    return __float_as_uint(x);
}
FA_DEVICE float float_from_word(uint32_t x) {
    return __uint_as_float(x);
}
FA_DEVICE float float_of(Bf16 x) {
    return __uint_as_float(uint32_t{x.bits} << 16);
}
FA_DEVICE float float_of(F16 x) {
    float f;
    asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(x.bits));
    return f;
}
template <class T>
FA_DEVICE uint32_t round_pair(float low, float high);
template <>
FA_DEVICE uint32_t round_pair<Bf16>(float low, float high) {
    uint32_t pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}
template <>
FA_DEVICE uint32_t round_pair<F16>(float low, float high) {
    uint32_t pair;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}

FA_DEVICE void load_matrices(uint32_t (&r)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}
FA_DEVICE void load_matrices_transposed(uint32_t (&r)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}
template <class T>
FA_DEVICE void mma_16x8x16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);
template <>
FA_DEVICE void mma_16x8x16<Bf16>(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, "
        "%2, "
        "%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
template <>
FA_DEVICE void mma_16x8x16<F16>(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
        "%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

FA_DEVICE float exp2_fast(float x) {
    float y;
    asm("ex2.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
FA_DEVICE float square_root(float x) {
    return __fsqrt_rn(x);
}

// A kernel must opt in to more shared memory than this.
inline constexpr int64_t kPlainSharedBytes = 48 * 1024;

template <class Args>
void launch(const char* name, void (*kernel)(Args), Grid grid, int threads, int64_t shared_bytes, const Args& args,
            Stream stream) {
    if (grid.x <= 0 || grid.y <= 0) return;
    cudaError_t code = cudaSuccess;
    if (shared_bytes > kPlainSharedBytes)
        code =
            cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes));
    const dim3 blocks(static_cast<unsigned>(grid.x), static_cast<unsigned>(grid.y));
    void* arguments[] = {const_cast<Args*>(&args)};
    if (code == cudaSuccess)
        code = cudaLaunchKernel(reinterpret_cast<const void*>(kernel), blocks, dim3(static_cast<unsigned>(threads)),
                                arguments, static_cast<size_t>(shared_bytes), stream);
    if (code == cudaSuccess) return;
    (void)cudaGetLastError();  // otherwise the next step would find this error
    throw Error(ErrorKind::kOs, std::string("launch of ") + name + ": expected success, got " + cudaGetErrorName(code) +
                                    " (" + cudaGetErrorString(code) + ")");
}

}  // namespace fastattn::cuda
#endif

namespace fastattn::cuda {

FA_DEVICE int lane() {
    return thread_id() % kWarp;
}
FA_DEVICE int warp() {
    return thread_id() / kWarp;
}
FA_DEVICE int count_of(const Rows& rows) {
    return rows.count == nullptr ? rows.most : *rows.count;
}
inline int64_t divide_up(int64_t a, int64_t b) {
    return (a + b - 1) / b;
}

}  // namespace fastattn::cuda
