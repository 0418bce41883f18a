#!/usr/bin/env bash
# Prints the lines of Python and C++ that the tests reach, per folder. Arguments go to pytest; default: all tests.
# The C++ code is built without optimization, for the targets scalar and avx2 (or neon).
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-.venv/bin/python}
build=build/coverage

cmake --preset coverage -DPython_EXECUTABLE="$python" -Dpybind11_DIR="$("$python" -m pybind11 --cmakedir)" \
  -DSKBUILD_PROJECT_VERSION=0.0.0 > /dev/null
cmake --build "$build" > /dev/null
find "$build" -name '*.gcda' -delete
rm -rf "$build/python"
mkdir -p "$build/python"
cp -r src/fastattn "$build/python/"
rm -f "$build"/python/fastattn/_*.so
cp "$build"/_core*.so "$build/python/fastattn/"

"$build/fastattn_native_tests" | tail -n 1
export COVERAGE_FILE=$PWD/$build/data
status=0
PYTHONPATH=$PWD/$build/python "$python" -m coverage run --source=fastattn -m pytest -q -p no:benchmark "$@" || status=$?
"$python" -m coverage report --skip-covered --sort=cover | tee "$build/python.txt" | tail -n 40
"$python" -m gcovr --root . --filter csrc/ --exclude csrc/native_tests/ --gcov-ignore-errors=all \
  --object-directory "$build" --txt "$build/cpp.txt" --print-summary
echo "details: $build/python.txt and $build/cpp.txt"
exit "$status"
