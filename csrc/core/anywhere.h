// FA_ANYWHERE marks a constexpr function that CUDA kernels can call, too.
#pragma once

#ifdef __CUDACC__
#define FA_ANYWHERE __host__ __device__ constexpr
#else
#define FA_ANYWHERE constexpr
#endif
