#!/usr/bin/env bash
# Proves and measures the CUDA kernels on the GPU at hand: `benchmarks/gpu.sh [section ...]`.
#
# Sections, in this order by default: build test golden sanitize ceilings resnet50 googlenet pooling others networks.
# Each gets SECTION_S seconds (default 240) and may fail without stopping the others. Writes what it finds under OUT
# (default benchmarks/results/gpu): JSON, tables and logs, with the device, the driver, versions and the date.
#
#   PYTHON=python3.12 OUT=/tmp/gpu benchmarks/gpu.sh build test golden sanitize
#   SECTION_S=400 benchmarks/gpu.sh resnet50
set -uo pipefail
cd "$(dirname "$0")/.."

PYTHON=${PYTHON:-python3}
OUT=${OUT:-benchmarks/results/gpu}
SECTION_S=${SECTION_S:-240}
sections=("$@")
((${#sections[@]})) || sections=(build test golden sanitize ceilings resnet50 googlenet pooling others networks)
mkdir -p "$OUT"
OUT=$(cd "$OUT" && pwd)
capability=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -n 1)
export TORCH_CUDA_ARCH_LIST=${TORCH_CUDA_ARCH_LIST:-$capability}
export MAX_JOBS=${MAX_JOBS:-$(nproc)} CNNEXT_CUDA=1 CNNEXT_REQUIRE_GPU=1 PYTHONUNBUFFERED=1
{
  date -u +%FT%TZ
  nvidia-smi --query-gpu=name,driver_version,compute_cap,memory.total --format=csv,noheader
  "$PYTHON" -c 'import sys, torch; print("Python", sys.version.split()[0], "torch", torch.__version__)'
  nvcc --version | tail -n 2
} | tee "$OUT/machine.txt"

build() { "$PYTHON" setup.py -q build_ext --inplace; }

run_tests() { "$PYTHON" -m pytest -q -x -p no:cacheprovider tests/test_cuda.py; }

# Single instructions: the GPU must print what the emulator prints.
golden() {
  local folder
  folder=$(mktemp -d)
  g++ -std=c++17 -O1 -w -U_FORTIFY_SOURCE -Icsrc -Itests/emulator -x c++ tests/emulator/golden.cu \
    tests/emulator/emulator.cpp -o "$folder/emulated" &&
    nvcc -std=c++17 -arch="sm_${capability/./}" -Icsrc tests/emulator/golden.cu -o "$folder/on_gpu" &&
    "$folder/emulated" >"$folder/expected.txt" && "$folder/on_gpu" >"$OUT/golden.txt" &&
    diff "$folder/expected.txt" "$OUT/golden.txt" && echo "every instruction does what its emulation does"
}

sanitize() {
  local tool
  for tool in memcheck racecheck; do
    compute-sanitizer --tool "$tool" --error-exitcode 1 "$PYTHON" benchmarks/gpu.py cases || return 1
  done
}

for section in "${sections[@]}"; do
  case $section in
    build | golden | sanitize) command=$section ;;
    test) command=run_tests ;;
    ceilings | networks) command="$PYTHON benchmarks/gpu.py $section --json $OUT/$section.json" ;;
    resnet50 | googlenet | pooling) command="$PYTHON benchmarks/gpu.py layers --suite $section --json $OUT/$section.json" ;;
    others) command="$PYTHON benchmarks/gpu.py layers --suite depthwise inception_v3 mobilenet_v2 deeplabv3_resnet50 --modes bf16 tf32 --json $OUT/others.json" ;;
    *) echo "there is no section $section" && exit 2 ;;
  esac
  echo "== $section"
  start=$SECONDS
  export -f build run_tests golden sanitize
  export PYTHON OUT capability
  timeout "$SECTION_S" bash -c "$command" 2>&1 | tee "$OUT/$section.log"
  echo "== $section: $([ "${PIPESTATUS[0]}" = 0 ] && echo passed || echo FAILED), $((SECONDS - start)) s" | tee -a "$OUT/summary.txt"
done
