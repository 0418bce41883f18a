#!/usr/bin/env bash
# Runs Python tests for 64-bit Arm on another machine: cross-compiles the extension, installs Debian's arm64 Python with
# numpy and tokenizers in build/arm64/root, and runs tests there under qemu-user. That is slow.
#   tools/test_arm64.sh                          the tests listed at the end, with the digests of the demo models
#   tools/test_arm64.sh tests/kernels -k rotary  only pytest, with these arguments
#   WHEEL=dist/...cp311...aarch64.whl tools/test_arm64.sh      tests this wheel and compiles nothing
# Needs Debian or Ubuntu with g++-aarch64-linux-gnu, qemu-user, cmake, ninja and pybind11 for $PYTHON (python3).
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
work=$PWD/build/arm64
root=$work/root
packages=$root/usr/lib/python3/dist-packages

# Debian's packages for arm64, in a folder of their own: apt and dpkg of this machine do not change.
make_root() {
  rm -rf "$root"
  mkdir -p "$root" "$work"/apt/{lists,archives}/partial
  : > "$work/apt/status"
  cat > "$work/apt.conf" << CONF
APT::Architecture "arm64";
APT::Architectures { "arm64"; };
APT::Sandbox::User "root";
APT::Install-Recommends "false";
Dir::State "$work/apt";
Dir::State::status "$work/apt/status";
Dir::Cache "$work/apt";
Dir::Etc::sourceparts "-";
Dir::Etc::sourcelist "$work/sources.list";
CONF
  echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian bookworm main" \
    > "$work/sources.list"
  APT_CONFIG=$work/apt.conf apt-get update -qq
  APT_CONFIG=$work/apt.conf apt-get install -y -qq --download-only python3 libpython3.11-dev libstdc++6 > /dev/null
  for package in "$work"/apt/archives/*.deb; do dpkg-deb -x "$package" "$root"; done
  # The header in python3.11/ only includes that of the architecture, by a path that a cross compiler does not search.
  cp "$root/usr/include/aarch64-linux-gnu/python3.11/pyconfig.h" "$root/usr/include/python3.11/pyconfig.h"
  "$PYTHON" -m pip install -q --disable-pip-version-check --target "$packages" --only-binary=:all: \
    --platform manylinux_2_28_aarch64 --platform manylinux_2_17_aarch64 --platform manylinux2014_aarch64 \
    --implementation cp --python-version 3.11 \
    numpy tokenizers tqdm pytest pytest-timeout hypothesis ml-dtypes shtab safetensors
  # sys.executable is this script, so that a test can start Python again.
  printf '#!/bin/sh\nexec qemu-aarch64 -L %s -0 %s %s "$@"\n' \
    "$root" "$root/usr/bin/python" "$root/usr/bin/python3.11" > "$root/usr/bin/python"
  chmod +x "$root/usr/bin/python"
  touch "$work/complete"
}

build_extension() {
  cmake -S . -B build/neon -G Ninja -DCMAKE_BUILD_TYPE=Release -DCMAKE_TOOLCHAIN_FILE=cmake/aarch64-linux-gnu.cmake \
    -DFASTATTN_PYTHON=ON -DFASTATTN_NATIVE_TESTS=ON -DFASTATTN_CUDA=OFF -DSKBUILD_PROJECT_VERSION=0.1.0 \
    -DPython_EXECUTABLE="$(command -v "$PYTHON")" -DPython_INCLUDE_DIR="$root/usr/include/python3.11" \
    -Dpybind11_DIR="$("$PYTHON" -m pybind11 --cmakedir)" > /dev/null
  rm -f build/neon/_core*.so  # an earlier build may have used another name
  cmake --build build/neon --target _core
  rm -rf "$packages/fastattn"
  mkdir -p "$packages"
  cp -r src/fastattn "$packages/"
  find "$packages/fastattn" -name '*.so' -delete
  cp build/neon/_core*.so "$packages/fastattn/_core.cpython-311-aarch64-linux-gnu.so"
}

install_wheel() { # as pip does, but pip would refuse a wheel for another machine
  rm -rf "$packages"/fastattn{,-*.dist-info}
  "$PYTHON" -m zipfile -e "$1" "$packages"
}

run() { PYTHONPATH=$PWD TOKENIZERS_PARALLELISM=false "$root/usr/bin/python" "$@"; }
pytest() { run -m pytest -q -p no:cacheprovider -p no:benchmark -m "not torch" "$@"; }

[ -e "$work/complete" ] || make_root
if [ -n "${WHEEL:-}" ]; then install_wheel "$WHEEL"; else build_extension; fi
run -m fastattn info
if [ $# -gt 0 ]; then
  pytest "$@"
else
  pytest tests/kernels tests/test_ops.py tests/program/test_same_bits.py tests/program/test_threads.py \
    tests/faults/test_targets.py tests/tasks/test_demo.py tests/tasks/test_pipeline_demo.py
  pytest tests/program/test_digests.py -k "gpt2-litbank or bert-sst2"
fi
