#!/usr/bin/env bash
# Builds the native tests and the Python extension with sanitizers, and runs tests or a command. The other SIMD targets
# share the code of those that the presets build.
#   tools/sanitize.sh asan                      AddressSanitizer and UndefinedBehaviorSanitizer, on the tests below
#   tools/sanitize.sh tsan                      ThreadSanitizer, on the tests with several threads
#   tools/sanitize.sh asan python -m tests.fuzz another command, with the sanitized extension first on PYTHONPATH
# Needs clang with its sanitizer libraries: it compiles the kernels in a third of the time that g++ takes.
set -euo pipefail
cd "$(dirname "$0")/.."

name=$1
shift
python=${PYTHON:-.venv/bin/python}
build=build/$name
mkdir -p build

for compiler in clang++ clang++-{22,21,20,19,18,17,16,15,14} ''; do
  command -v "$compiler" > /dev/null && break
done
if [ -z "$compiler" ]; then
  echo "sanitize.sh needs clang and its sanitizer libraries; Debian: apt-get install clang-19 libclang-rt-19-dev"
  exit 1
fi

case $name in
  asan | tsan) library=libclang_rt.$name-x86_64.so ;;
  *) echo "sanitizer: expected asan or tsan, got $name"; exit 1 ;;
esac
library=$("$compiler" -print-file-name="${library/x86_64/$(uname -m)}")
rpath=-Wl,-rpath,$(dirname "$library")

cmake --preset "$name" -DCMAKE_CXX_COMPILER="$compiler" -DPython_EXECUTABLE="$(command -v "$python")" \
  -Dpybind11_DIR="$("$python" -m pybind11 --cmakedir)" -DSKBUILD_PROJECT_VERSION=0.0.0 \
  -DCMAKE_MODULE_LINKER_FLAGS="$rpath" -DCMAKE_EXE_LINKER_FLAGS="$rpath" > "$build.log" || { cat "$build.log"; exit 1; }
cmake --build "$build" ${JOBS:+-j "$JOBS"} >> "$build.log" || { cat "$build.log"; exit 1; }

# A copy of the package with the sanitized extension.
rm -rf "$build/python"
mkdir -p "$build/python"
cp -r src/fastattn "$build/python/"
rm -f "$build"/python/fastattn/_*.so
cp "$build"/_core*.so "$build/python/fastattn/"

export ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1:hard_rss_limit_mb=4000
export UBSAN_OPTIONS=print_stacktrace=1
export TSAN_OPTIONS=halt_on_error=1:die_after_fork=0:suppressions=$PWD/tools/tsan-suppressions.txt
export TOKENIZERS_PARALLELISM=false
# The sanitizer must be loaded first, and its wrapper of __cxa_throw must find libstdc++, which Python does not load.
sanitized() {
  LD_PRELOAD="$library:$("$compiler" -print-file-name=libstdc++.so.6)" PYTHONPATH=$PWD/$build/python "$@"
}

if [ $# -gt 0 ]; then
  sanitized "$@"
  exit
fi

# What runs C++ on unusual input, or on several threads.
faults=tests/faults/test
program=tests/program/test
tests=("${faults}"_{threads,process}.py)
if [ "$name" = asan ]; then
  tests+=("${faults}"_{arrays,files,files_sharded,files_changed,quantized_files,weight_sources,fork}.py)
  tests+=("${program}"_{check_spec,same_bits_random,threads}.py)
  "$build/fastattn_native_tests" > "$build.log" || { cat "$build.log"; exit 1; }
  tail -n 1 "$build.log"
fi
# Skips the tests that limit or measure memory, or measure speed: a sanitizer reserves terabytes of addresses, frees
# memory late and slows everything.
left_out="address_space_limit or cannot_start or needs_little_more or measure_the_machine"
sanitized "$python" -m pytest -q -p no:benchmark -p no:cacheprovider -n "${WORKERS:-0}" -k "not ($left_out)" "${tests[@]}"
