#!/usr/bin/env bash
# Compiles all C++ but the Python bindings for macOS on arm64 and Windows on x86-64, with clang from PyPI's `ziglang`.
# Only proves that it compiles: nothing is linked or run.
#   PYTHON=.venv/bin/python tools/compile_elsewhere.sh          needs cmake, ninja and $PYTHON with ziglang
set -euo pipefail
cd "$(dirname "$0")/.."
zig=$("${PYTHON:-python3}" -c 'import pathlib, ziglang; print(pathlib.Path(ziglang.__file__).with_name("zig"))')

compile() { # target of zig, system and processor of CMake
  # Without STATIC_LIBRARY, each check of CMake would link, and zig would first compile the libraries of the system.
  cmake -S . -B "build/$1" -G Ninja -DCMAKE_BUILD_TYPE=Release -DFASTATTN_PYTHON=OFF -DFASTATTN_CUDA=OFF \
    -DCMAKE_TRY_COMPILE_TARGET_TYPE=STATIC_LIBRARY \
    -DCMAKE_SYSTEM_NAME="$2" -DCMAKE_SYSTEM_PROCESSOR="$3" "-DCMAKE_CXX_COMPILER=$zig;c++;-target;$1" > /dev/null
  cmake --build "build/$1"
  echo "$1: compiled"
}
compile aarch64-macos Darwin arm64
compile x86_64-windows-gnu Windows AMD64
