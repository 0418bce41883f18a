# Cross-compiles with clang from the package `ziglang` of PyPI, which brings the headers and libraries of every libc
# (tools/wheels.py). FASTATTN_ZIG is its program `zig`; FASTATTN_ZIG_TARGET is, for example, x86_64-linux-gnu.2.17.
set(CMAKE_TRY_COMPILE_PLATFORM_VARIABLES FASTATTN_ZIG FASTATTN_ZIG_TARGET)
set(CMAKE_SYSTEM_NAME Linux)
string(REGEX MATCH "^[a-z0-9_]+" CMAKE_SYSTEM_PROCESSOR "${FASTATTN_ZIG_TARGET}")
set(CMAKE_CXX_COMPILER "${FASTATTN_ZIG}" c++ -target ${FASTATTN_ZIG_TARGET})
# clang lacks a warning that csrc/simd/vec_avx512.h turns off for gcc.
set(CMAKE_CXX_FLAGS_INIT -Wno-unknown-warning-option)
