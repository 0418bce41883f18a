#!/usr/bin/env bash
# Builds the native tests and the Python extension with sanitizers, for the targets scalar and avx2, and runs a command.
#   tools/sanitize.sh asan                      AddressSanitizer and UndefinedBehaviorSanitizer: runs tools/sanitized_tests
#   tools/sanitize.sh tsan                      ThreadSanitizer: the same
#   tools/sanitize.sh asan python -m tests.fuzz another command, with the sanitized extension first on PYTHONPATH
# Needs clang with its sanitizer libraries: it compiles the kernels in a third of the time that g++ takes.
set -euo pipefail
cd "$(dirname "$0")/.."

name=$1
shift
python=${PYTHON:-.venv/bin/python}
build=build/$name

for compiler in clang++ clang++-{22,21,20,19,18,17,16,15,14} ''; do
  command -v "$compiler" > /dev/null && break
done
if [ -z "$compiler" ]; then
  echo "sanitize.sh needs clang and its sanitizer libraries; Debian: apt-get install clang-19 libclang-rt-19-dev"
  exit 1
fi

case $name in
  asan) library=libclang_rt.asan-x86_64.so ;;
  tsan) library=libclang_rt.tsan-x86_64.so ;;
  *) echo "sanitizer: expected asan or tsan, got $name"; exit 1 ;;
esac
library=$("$compiler" -print-file-name="${library/x86_64/$(uname -m)}")

launcher=()
! command -v ccache > /dev/null || launcher=(-DCMAKE_CXX_COMPILER_LAUNCHER=ccache)
cmake --preset "$name" "${launcher[@]}" -DCMAKE_CXX_COMPILER="$compiler" -DPython_EXECUTABLE="$(command -v "$python")" \
  -Dpybind11_DIR="$("$python" -m pybind11 --cmakedir)" -DSKBUILD_PROJECT_VERSION=0.0.0 \
  -DCMAKE_SHARED_LINKER_FLAGS=-Wl,-rpath,"$(dirname "$library")" > "$build.log" || { cat "$build.log"; exit 1; }
cmake --build "$build" ${JOBS:+-j "$JOBS"} > "$build.log" || { cat "$build.log"; exit 1; }

# A copy of the package with the sanitized extension.
rm -rf "$build/python"
mkdir -p "$build/python"
cp -r src/fastattn "$build/python/"
rm -f "$build"/python/fastattn/_*.so
cp "$build"/_core*.so "$build/python/fastattn/"
