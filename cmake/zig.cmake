# Cross-compiles with clang from the package `ziglang` of PyPI, which brings the headers and libraries of every libc
# (tools/wheels.py). FASTATTN_ZIG is its program `zig`; FASTATTN_ZIG_TARGET is, for example, x86_64-linux-gnu.2.17.
# CMake's checks compile but do not link: before zig links a program, it compiles the platform's libraries, which takes
# minutes. With CMAKE_CXX_COMPILER_TARGET set, CMake also identifies the compiler without linking.
set(CMAKE_TRY_COMPILE_TARGET_TYPE STATIC_LIBRARY)
set(CMAKE_TRY_COMPILE_PLATFORM_VARIABLES FASTATTN_ZIG FASTATTN_ZIG_TARGET)
set(CMAKE_SYSTEM_NAME Linux)
string(REGEX MATCH "^[a-z0-9_]+" CMAKE_SYSTEM_PROCESSOR "${FASTATTN_ZIG_TARGET}")
set(CMAKE_CXX_COMPILER "${FASTATTN_ZIG}" c++)
set(CMAKE_CXX_COMPILER_TARGET "${FASTATTN_ZIG_TARGET}")
# Without -g0, zig writes debug information. That takes a quarter of the time, and the linker removes it.
# clang lacks a warning that csrc/simd/vec_avx512.h turns off for gcc.
set(CMAKE_CXX_FLAGS_INIT "-g0 -Wno-unknown-warning-option")
