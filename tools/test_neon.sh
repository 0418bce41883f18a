#!/usr/bin/env bash
# Builds the native kernel tests for 64-bit Arm, runs them under qemu on three CPUs, and compares their hashes with this
# machine's. Each CPU must choose its own SIMD targets.
#   tools/test_neon.sh            installs the compiler and qemu with apt-get if they are missing
set -euo pipefail
cd "$(dirname "$0")/.."

if ! command -v aarch64-linux-gnu-g++ qemu-aarch64 cmake ninja > /dev/null; then
  sudo=$([ "$(id -u)" = 0 ] || echo sudo)
  $sudo apt-get update -qq
  $sudo apt-get install -y -qq g++-aarch64-linux-gnu qemu-user cmake ninja-build > /dev/null
fi

build() { # folder, extra cmake arguments
  cmake -S . -B "$1" -G Ninja -DCMAKE_BUILD_TYPE=Release -DFASTATTN_PYTHON=OFF -DFASTATTN_NATIVE_TESTS=ON "${@:2}" > /dev/null
  cmake --build "$1" --target fastattn_native_tests
}
hashes() { awk '$4 == "passed" { print $1, $3 }' "$1" | sort -u; }
targets() { awk '$4 == "passed" { print $2 }' "$1" | sort -u | xargs; }

run_on() { # CPU of qemu, the targets that it must run
  local results="build/neon/results-$1.txt"
  echo "== $1"
  qemu-aarch64 -cpu "$1" build/neon/fastattn_native_tests | tee "$results"
  diff <(hashes build/native/results.txt) <(hashes "$results")
  if [ "$(targets "$results")" != "$2" ]; then
    echo "$1: expected the targets $2, got $(targets "$results")"
    exit 1
  fi
}

build build/neon -DCMAKE_TOOLCHAIN_FILE=cmake/aarch64-linux-gnu.cmake
build build/native
build/native/fastattn_native_tests | tee build/native/results.txt
run_on max "neon neon_dotprod neon_i8mm scalar"
run_on neoverse-n1 "neon neon_dotprod scalar"
run_on cortex-a57 "neon scalar"
echo "aarch64 and $(uname -m) give the same bits"
