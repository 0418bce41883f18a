#!/usr/bin/env bash
# Compiles all C++ but the Python bindings for macOS on arm64 and Windows on x86-64, with clang from PyPI's `ziglang`.
# Only proves that it compiles: nothing is linked or run.
#   PYTHON=.venv/bin/python tools/compile_elsewhere.sh          needs cmake, ninja and $PYTHON with ziglang
set -euo pipefail
cd "$(dirname "$0")/.."
zig=$("${PYTHON:-python3}" -c 'import pathlib, ziglang; print(pathlib.Path(ziglang.__file__).with_name("zig"))')

compile() { # target of zig, system and processor of CMake
  # STATIC_LIBRARY and COMPILER_TARGET: without them CMake would link, and zig would first compile the libraries of the
  # system. -O1 and -g0 save time; nobody runs the result.
  cmake -S . -B "build/$1" -G Ninja -DCMAKE_BUILD_TYPE=Release -DFASTATTN_PYTHON=OFF -DFASTATTN_CUDA=OFF \
    -DFASTATTN_OPTIMIZE=-O1 -DCMAKE_CXX_FLAGS=-g0 -DCMAKE_TRY_COMPILE_TARGET_TYPE=STATIC_LIBRARY \
    -DCMAKE_SYSTEM_NAME="$2" -DCMAKE_SYSTEM_PROCESSOR="$3" "-DCMAKE_CXX_COMPILER=$zig;c++" \
    -DCMAKE_CXX_COMPILER_TARGET="$1" > /dev/null
  cmake --build "build/$1"
  echo "$1: compiled"
}
compile aarch64-macos Darwin arm64
compile x86_64-windows-gnu Windows AMD64
