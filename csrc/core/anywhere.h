// FA_ANYWHERE: a constexpr function that kernels of CUDA can call, too.
#pragma once

#ifdef __CUDACC__
#define FA_ANYWHERE __host__ __device__ constexpr
#else
#define FA_ANYWHERE constexpr
#endif
