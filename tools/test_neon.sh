#!/usr/bin/env bash
# Builds the native kernel tests for 64-bit Arm, runs them under qemu, and compares their hashes with this machine's.
#   tools/test_neon.sh            installs the compiler and qemu with apt-get if they are missing
set -euo pipefail
cd "$(dirname "$0")/.."

missing=no
for tool in aarch64-linux-gnu-g++ qemu-aarch64 cmake ninja; do
  command -v "$tool" > /dev/null || missing=yes
done
if [ "$missing" = yes ]; then
  sudo=$([ "$(id -u)" = 0 ] || echo sudo)
  $sudo apt-get update -qq
  $sudo apt-get install -y -qq g++-aarch64-linux-gnu qemu-user cmake ninja-build > /dev/null
fi

build() { # folder, extra cmake arguments
  cmake -S . -B "$1" -G Ninja -DCMAKE_BUILD_TYPE=Release -DFASTATTN_PYTHON=OFF -DFASTATTN_NATIVE_TESTS=ON "${@:2}" > /dev/null
  cmake --build "$1" --target fastattn_native_tests
}
hashes() { awk '$4 == "passed" { print $1, $3 }' "$1" | sort -u; }

build build/neon -DCMAKE_TOOLCHAIN_FILE=cmake/aarch64-linux-gnu.cmake
build build/native
build/native/fastattn_native_tests | tee build/native/results.txt
qemu-aarch64 build/neon/fastattn_native_tests | tee build/neon/results.txt
diff <(hashes build/native/results.txt) <(hashes build/neon/results.txt)
echo "aarch64 and $(uname -m) give the same bits"
