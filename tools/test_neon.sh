#!/usr/bin/env bash
# Builds the native kernel tests for 64-bit Arm, runs them under qemu on three CPUs, and compares their hashes with this
# machine's. On each CPU, exactly its SIMD targets must be available. An emulated run is slow, so a target runs only on
# the CPU that has no more than it needs.
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
targets() { awk '$4 == "passed" { print $2 }' "$1" | sort -u | xargs; }
must_be() { # what, expected, found
  [ "$2" = "$3" ] || { echo "$1: expected $2, got $3"; exit 1; }
}

run() { # CPU of qemu, targets
  qemu-aarch64 -cpu "$1" build/neon/fastattn_native_tests "${@:2}" > "build/neon/results-$1.txt"
}
check() { # CPU of qemu, the targets that it must have, those that must have run
  local results="build/neon/results-$1.txt"
  sed "s/^/$1: /" "$results"
  must_be "$1: available" "$2" "$(sed -n 's/^available: //p' "$results" | xargs -n 1 | sort | xargs)"
  must_be "$1: run" "$3" "$(targets "$results")"
  diff <(hashes build/native/results.txt) <(hashes "$results")
}

build build/neon -DCMAKE_TOOLCHAIN_FILE=cmake/aarch64-linux-gnu.cmake
build build/native
build/native/fastattn_native_tests | tee build/native/results.txt
run max neon_i8mm & runs=($!)
run neoverse-n1 neon_dotprod & runs+=($!)
run cortex-a57 & runs+=($!)
failed=no
for pid in "${runs[@]}"; do wait "$pid" || failed=yes; done
check max "neon neon_dotprod neon_i8mm scalar" neon_i8mm
check neoverse-n1 "neon neon_dotprod scalar" neon_dotprod
check cortex-a57 "neon scalar" "neon scalar"
[ "$failed" = no ]
echo "aarch64 and $(uname -m) give the same bits"
