include(CheckCXXSourceCompiles)

# The targets, one per line. Every kernel source is compiled once per target, in the target's own namespace, so the
# linker cannot replace AVX2 functions with AVX-512 ones (tools/check_weak_symbols.py checks this).
# FASTATTN_OPTIMIZE is empty, or a level that replaces -O3 and -O2, for builds that must compile quickly.
set(FASTATTN_OPTIMIZE "" CACHE STRING "Optimization level of all sources, such as -O1; empty: the defaults")
set(FASTATTN_KERNEL_FLAGS -O3 ${FASTATTN_OPTIMIZE} -ffp-contract=off -fno-math-errno -fno-trapping-math -fno-exceptions
    -fno-rtti -fno-lto -fno-strict-aliasing -fno-threadsafe-statics -Wall -Wextra)

set(FASTATTN_ONLY_TARGETS "" CACHE STRING "SIMD targets to build, as a list; empty: all")
set(FASTATTN_KERNELS_FROM "" CACHE STRING "Build folder of another libc, whose kernels are linked; empty: compile them")

function(fastattn_simd_target name)
  if(FASTATTN_ONLY_TARGETS AND NOT name IN_LIST FASTATTN_ONLY_TARGETS)
    return()
  endif()
  set_property(GLOBAL APPEND PROPERTY FASTATTN_TARGETS ${name})
  if(FASTATTN_KERNELS_FROM)
    foreach(source IN LISTS FASTATTN_KERNEL_SOURCES)
      get_filename_component(file ${source} NAME)
      list(APPEND objects ${FASTATTN_KERNELS_FROM}/CMakeFiles/fastattn_kernels_${name}.dir/csrc/kernels/${file}.o)
    endforeach()
    add_library(fastattn_kernels_${name} OBJECT IMPORTED)
    set_property(TARGET fastattn_kernels_${name} PROPERTY IMPORTED_OBJECTS ${objects})
    return()
  endif()
  add_library(fastattn_kernels_${name} OBJECT ${FASTATTN_KERNEL_SOURCES})
  target_compile_definitions(fastattn_kernels_${name} PRIVATE FASTATTN_TARGET=${name} FASTATTN_TARGET_${name}=1)
  target_compile_options(fastattn_kernels_${name} PRIVATE ${FASTATTN_KERNEL_FLAGS} ${ARGN})
  target_include_directories(fastattn_kernels_${name} PRIVATE ${PROJECT_SOURCE_DIR}/csrc)
  set_target_properties(fastattn_kernels_${name} PROPERTIES
    POSITION_INDEPENDENT_CODE ON CXX_VISIBILITY_PRESET hidden VISIBILITY_INLINES_HIDDEN ON)
endfunction()

# A target with extensions of Arm, if the compiler has the intrinsic that `value` uses. GCC and clang take extensions
# with -march, zig with -mcpu.
function(fastattn_arm_target name extensions value)
  foreach(option -march=armv8.2-a -mcpu=generic)
    string(MAKE_C_IDENTIFIER "FASTATTN_${name}${option}" accepted)
    set(CMAKE_REQUIRED_FLAGS ${option}${extensions})
    check_cxx_source_compiles("#include <arm_neon.h>
      int main() { return vgetq_lane_s32(${value}, 0); }" ${accepted})
    if(${accepted})
      fastattn_simd_target(${name} ${option}${extensions})
      return()
    endif()
  endforeach()
  message(STATUS "SIMD target ${name}: not built, because the compiler cannot compile its instructions")
endfunction()

fastattn_simd_target(scalar)
if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
  fastattn_simd_target(avx2 -mavx2 -mfma -mf16c)
  set(avx512 -mavx512f -mavx512bw -mavx512vl -mavx512dq -mfma -mf16c -mprefer-vector-width=512)
  fastattn_simd_target(avx512 ${avx512})
  fastattn_simd_target(avx512_vnni ${avx512} -mavx512vnni)
  fastattn_simd_target(avx512_bf16 ${avx512} -mavx512vnni -mavx512bf16)
  # A compiler may accept these flags but call an assembler that does not support the instructions.
  set(amx -mamx-tile -mamx-bf16 -mamx-int8)
  list(JOIN amx " " CMAKE_REQUIRED_FLAGS)
  check_cxx_source_compiles("#include <immintrin.h>
    int main() { _tile_dpbf16ps(0, 1, 2); _tile_dpbusd(0, 1, 2); }" FASTATTN_COMPILER_HAS_AMX)
  unset(CMAKE_REQUIRED_FLAGS)
  if(FASTATTN_COMPILER_HAS_AMX)
    fastattn_simd_target(amx ${avx512} -mavx512vnni -mavx512bf16 ${amx})
  else()
    message(STATUS "SIMD target amx: not built, because the compiler cannot compile its instructions")
  endif()
elseif(CMAKE_SYSTEM_PROCESSOR MATCHES "aarch64|arm64")
  fastattn_simd_target(neon)
  fastattn_arm_target(neon_dotprod +dotprod "vdotq_s32(vdupq_n_s32(0), vdupq_n_s8(0), vdupq_n_s8(0))")
  fastattn_arm_target(neon_i8mm +dotprod+i8mm+bf16 "vmmlaq_s32(vdupq_n_s32(0), vdupq_n_s8(0), vdupq_n_s8(0))")
endif()
