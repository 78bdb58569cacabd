#!/usr/bin/env bash
# Proves and measures the CUDA kernels on the GPU at hand: `benchmarks/gpu.sh [section ...]`.
#
# Sections, in this order by default: golden build test (the proof), ceilings networks, layers of resnet50 pooling googlenet
# mobilenet_v2 inception_v3 deeplabv3_resnet50 grouped, and sanitize, which takes what it gets. The whole run takes at most
# LIMIT_S seconds (default 540): a section gets what is left of them, and all but the build at most SECTION_S (default 240);
# layers and networks that do not fit are left out, and the log says which. A section that fails does not stop the others,
# but for the build; the last line and the status tell of it. Results, with the device, the driver, versions and the date, go
# to OUT (default benchmarks/results/gpu) as they are found: JSON, tables, logs.
#
#   PYTHON=python3.12 OUT=/tmp/gpu benchmarks/gpu.sh golden build test sanitize
#   LAYERS="--modes bf16 tf32 --layouts channels_last" benchmarks/gpu.sh build ceilings resnet50 googlenet
set -uo pipefail
cd "$(dirname "$0")/.."

PYTHON=${PYTHON:-python3}
OUT=${OUT:-benchmarks/results/gpu}
LIMIT_S=${LIMIT_S:-540}
SECTION_S=${SECTION_S:-240}
LAYERS=${LAYERS:-} # options for `gpu.py layers`
sections=("$@")
((${#sections[@]})) || sections=(golden build test ceilings networks resnet50 pooling googlenet mobilenet_v2 inception_v3
  deeplabv3_resnet50 grouped sanitize)
mkdir -p "$OUT"
OUT=$(cd "$OUT" && pwd)
capability=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -n 1)
if [ -z "$capability" ]; then
  echo "nvidia-smi sees no GPU"
  exit 2
fi
arch=${capability/./}
[ "$arch" != 90 ] || arch=90a capability=9.0a # with Hopper's own instructions
export TORCH_CUDA_ARCH_LIST=${TORCH_CUDA_ARCH_LIST:-$capability}
export MAX_JOBS=${MAX_JOBS:-$(nproc)} CNNEXT_CUDA=1 CNNEXT_REQUIRE_GPU=1 PYTHONUNBUFFERED=1
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} # nothing is installed
{
  date -u +%FT%TZ
  nvidia-smi --query-gpu=name,driver_version,compute_cap,memory.total --format=csv,noheader
  "$PYTHON" -c 'import sys, torch; print("Python", sys.version.split()[0], "torch", torch.__version__)'
  nvcc --version | tail -n 2
} | tee "$OUT/machine.txt"

build() { "$PYTHON" setup.py -q build_ext --inplace; }

# Torch's results on the CPU are what takes time: four workers share the cores. Many failures tell more than the first.
# A kernel that does not end ends its worker, and so is told of by name; another worker goes on.
run_tests() {
  OMP_NUM_THREADS=$((($(nproc) + 3) / 4)) "$PYTHON" -m pytest -q -n 4 --maxfail 40 --tb short -p no:cacheprovider \
    --timeout 90 --timeout-method thread tests/test_cuda.py tests/test_info.py
}

# Single instructions: the GPU must print what the emulator prints.
golden() {
  local folder
  folder=$(mktemp -d)
  g++ -std=c++17 -O1 -w -U_FORTIFY_SOURCE -Icsrc -Itests/emulator -x c++ tests/emulator/golden.cu \
    tests/emulator/{emulator,instructions}.cpp -o "$folder/emulated" &&
    nvcc -std=c++17 -arch="sm_$arch" -Icsrc tests/emulator/golden.cu -o "$folder/on_gpu" &&
    "$folder/emulated" >"$folder/expected.txt" && { "$folder/on_gpu" >"$OUT/golden.txt" || ! cat "$OUT/golden.txt"; } &&
    [ -s "$OUT/golden.txt" ] && ! grep -Fxv -f "$folder/expected.txt" "$OUT/golden.txt" && # other lines are wrong
    echo "$(wc -l <"$OUT/golden.txt") instructions do what their emulation does"
}

# Without torch's cache of memory, or what lies behind a tensor would be memory too. Our kernels alone are looked at.
sanitize() {
  local tool bad=0
  for tool in memcheck racecheck; do
    echo "-- $tool"
    PYTORCH_NO_CUDA_MEMORY_CACHING=1 timeout -k 5 $((seconds / 2 - 10)) compute-sanitizer --tool "$tool" \
      --kernel-name kns=cnnext --error-exitcode 1 "$PYTHON" benchmarks/gpu.py cases || bad=1
  done
  return $bad
}
export -f build run_tests golden sanitize
export PYTHON OUT arch seconds

: >"$OUT/summary.txt"
bad=0
for section in "${sections[@]}"; do
  seconds=$((LIMIT_S - SECONDS))
  ((seconds < SECTION_S)) || [ "$section" = build ] || seconds=$SECTION_S
  measure="\"\$PYTHON\" benchmarks/gpu.py --json \"\$OUT/$section.json\""
  case $section in
    build | golden | sanitize) command=$section ;;
    test) command=run_tests ;;
    ceilings) command="$measure ceilings" ;;
    networks) command="$measure networks --seconds $((seconds - 30))" ;; # what is begun must end
    *) command="$measure layers --suite $section --seconds $((seconds - 30)) $LAYERS" ;;
  esac
  echo "== $section"
  start=$SECONDS
  if ((seconds < 40)); then
    result="NOT RUN, no time was left"
  elif timeout -k 10 "$seconds" bash -c "$command" 2>&1 | tee "$OUT/$section.log"; then
    result="passed, $((SECONDS - start)) s"
  else
    result="FAILED, $((SECONDS - start)) s"
  fi
  [[ $result == passed* ]] || bad=1
  echo "== $section: $result" | tee -a "$OUT/summary.txt"
  [[ $section != build || $result == passed* ]] || break # nothing else can run
done
cat "$OUT/summary.txt"
exit "$bad"
