# The CUDA extension, fastattn._cuda. It is separate, so one build works on machines with and without a GPU.
# FASTATTN_CUDA: OFF (docs/design/0020-cuda-delivery.md), ON, or AUTO. AUTO builds it if it finds a usable nvcc, and
# otherwise skips it silently.
set(FASTATTN_CUDA OFF CACHE STRING "Build the CUDA extension fastattn._cuda: AUTO, ON or OFF")
set_property(CACHE FASTATTN_CUDA PROPERTY STRINGS AUTO ON OFF)
# Code for Ampere, Ada and Hopper, and PTX, which the driver compiles for newer GPUs.
set(FASTATTN_CUDA_TARGETS 80 86 89 90a CACHE STRING "GPUs (sm_XX) that the CUDA extension has code for")
set(FASTATTN_CUDA_PTX 90 CACHE STRING "Virtual architecture of the PTX code; empty: no PTX")
option(FASTATTN_CUDA_EMULATION "Build the CUDA executor over an emulation on the CPU, for tests" OFF)
set(FASTATTN_LEAST_NVCC 12.4)

file(GLOB FASTATTN_CUDA_KERNELS CONFIGURE_DEPENDS csrc/cuda/kernels/*.cu)
file(GLOB FASTATTN_CUDA_SOURCES CONFIGURE_DEPENDS csrc/cuda/*.cpp csrc/program/kinds/*.cpp)
list(APPEND FASTATTN_CUDA_SOURCES csrc/core/buffer.cpp csrc/core/platform.cpp csrc/kv/kv_cache.cpp csrc/kv/page_pool.cpp
     csrc/runtime/fork_local.cpp csrc/program/check_spec.cpp csrc/program/check_step.cpp csrc/program/decoding.cpp
     csrc/program/lifetimes.cpp csrc/program/op_kind.cpp csrc/program/rough_activations.cpp)
set(FASTATTN_CUDA_BINDINGS csrc/bindings/cuda_module.cpp csrc/bindings/python_calls.cpp csrc/bindings/read_spec.cpp
    csrc/bindings/register_errors.cpp)

set(build_cuda OFF)
if(FASTATTN_PYTHON AND NOT FASTATTN_CUDA STREQUAL "OFF")
  set(build_cuda ON)
  if(FASTATTN_CUDA STREQUAL "AUTO")
    include(CheckLanguage)
    set(CMAKE_MESSAGE_LOG_LEVEL WARNING)
    check_language(CUDA)
    unset(CMAKE_MESSAGE_LOG_LEVEL)
    if(NOT CMAKE_CUDA_COMPILER)
      set(build_cuda OFF)
    endif()
  endif()
endif()
if(build_cuda)
  set(CMAKE_CUDA_ARCHITECTURES OFF)  # set below, in the same way for every version of CMake
  enable_language(CUDA)
  if(CMAKE_CUDA_COMPILER_VERSION VERSION_LESS FASTATTN_LEAST_NVCC)
    if(FASTATTN_CUDA STREQUAL "ON")
      message(FATAL_ERROR
        "FASTATTN_CUDA: expected nvcc ${FASTATTN_LEAST_NVCC} or newer, got ${CMAKE_CUDA_COMPILER_VERSION}")
    endif()
    set(build_cuda OFF)
  endif()
endif()

if(build_cuda)
  find_package(CUDAToolkit REQUIRED)
  if(NOT DEFINED CMAKE_CUDA20_STANDARD_COMPILE_OPTION)  # unknown to CMake before 3.26 for newer nvccs
    set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION -std=c++20)
  endif()
  python_add_library(_cuda MODULE WITH_SOABI
    ${FASTATTN_CUDA_BINDINGS} ${FASTATTN_CUDA_SOURCES} ${FASTATTN_CUDA_KERNELS})
  set(codes "")
  foreach(gpu IN LISTS FASTATTN_CUDA_TARGETS)
    list(APPEND codes "SHELL:-gencode arch=compute_${gpu},code=sm_${gpu}")
  endforeach()
  if(FASTATTN_CUDA_PTX)
    list(APPEND codes "SHELL:-gencode arch=compute_${FASTATTN_CUDA_PTX},code=compute_${FASTATTN_CUDA_PTX}")
  endif()
  # As on the CPU, the compiler may not fuse multiply-adds on its own.
  set(cuda_flags -O3 -fmad=false -Xfatbin=-compress-all -Xcompiler=-Wall,-Wextra,-ffp-contract=off ${codes})
  target_compile_options(_cuda PRIVATE
    "$<$<COMPILE_LANGUAGE:CXX>:-O2;-ffp-contract=off;-Wall;-Wextra>" "$<$<COMPILE_LANGUAGE:CUDA>:${cuda_flags}>")
  target_include_directories(_cuda PRIVATE csrc)
  target_link_libraries(_cuda PRIVATE pybind11::headers CUDA::cudart_static ${CMAKE_DL_LIBS} Threads::Threads)
  set_target_properties(_cuda PROPERTIES CXX_VISIBILITY_PRESET hidden CUDA_VISIBILITY_PRESET hidden
    CUDA_STANDARD 20 CUDA_STANDARD_REQUIRED ON CUDA_EXTENSIONS OFF CUDA_RUNTIME_LIBRARY Static)
  install(TARGETS _cuda DESTINATION fastattn)
endif()

# The same executor and kernels, compiled by the C++ compiler against an emulation of a GPU. Only tests build them: the
# kernel tests, and a module with the interface of fastattn._cuda.
if(FASTATTN_CUDA_EMULATION)
  set_source_files_properties(${FASTATTN_CUDA_KERNELS} PROPERTIES LANGUAGE CXX COMPILE_OPTIONS -xc++)
  add_library(fastattn_cuda_emulated OBJECT ${FASTATTN_CUDA_KERNELS} csrc/native_tests/cuda/emulation.cpp)
  target_compile_definitions(fastattn_cuda_emulated PUBLIC
    FASTATTN_CUDA_EMULATION="native_tests/cuda_emulation.h")
  target_compile_options(fastattn_cuda_emulated PRIVATE -O2 -ffp-contract=off -Wall -Wextra -Wno-unknown-pragmas)
  target_include_directories(fastattn_cuda_emulated PUBLIC csrc)
  set_target_properties(fastattn_cuda_emulated PROPERTIES POSITION_INDEPENDENT_CODE ON)

  list(FILTER FASTATTN_CUDA_SOURCES EXCLUDE REGEX "/cuda_api\\.cpp$")
  python_add_library(_cuda_emulated MODULE WITH_SOABI EXCLUDE_FROM_ALL ${FASTATTN_CUDA_BINDINGS}
    ${FASTATTN_CUDA_SOURCES} csrc/native_tests/emulated_api.cpp $<TARGET_OBJECTS:fastattn_cuda_emulated>)
  target_compile_definitions(_cuda_emulated PRIVATE FASTATTN_CUDA_MODULE=_cuda_emulated)
  target_compile_options(_cuda_emulated PRIVATE -O2 -ffp-contract=off -Wall -Wextra)
  target_include_directories(_cuda_emulated PRIVATE csrc)
  target_link_libraries(_cuda_emulated PRIVATE pybind11::headers ${CMAKE_DL_LIBS} Threads::Threads)
  set_target_properties(_cuda_emulated PROPERTIES CXX_VISIBILITY_PRESET hidden)

  add_library(fake_cublas_lt MODULE EXCLUDE_FROM_ALL csrc/native_tests/fake_cublas_lt.cpp)
  target_compile_options(fake_cublas_lt PRIVATE -O2 -ffp-contract=off -Wall -Wextra)
  target_include_directories(fake_cublas_lt PRIVATE csrc)

  file(GLOB sources CONFIGURE_DEPENDS csrc/native_tests/cuda/*.cpp)
  list(FILTER sources EXCLUDE REGEX "/emulation\\.cpp$")
  add_executable(fastattn_cuda_tests EXCLUDE_FROM_ALL ${sources} csrc/cuda/plan.cpp csrc/native_tests/support.cpp
    $<TARGET_OBJECTS:fastattn_cuda_emulated> ${objects})
  target_include_directories(fastattn_cuda_tests PRIVATE csrc)
  target_compile_definitions(fastattn_cuda_tests PRIVATE
    $<TARGET_PROPERTY:fastattn_engine,INTERFACE_COMPILE_DEFINITIONS>
    $<TARGET_PROPERTY:fastattn_cuda_emulated,INTERFACE_COMPILE_DEFINITIONS>)
  target_compile_options(fastattn_cuda_tests PRIVATE -O2 -ffp-contract=off -Wall -Wextra)
  target_link_libraries(fastattn_cuda_tests PRIVATE Threads::Threads)
endif()
