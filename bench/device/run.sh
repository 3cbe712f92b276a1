#!/usr/bin/env bash
# What a machine with a GPU is for: bench/device/run.sh OUT
# Builds the package with its CUDA kernels in place, and the kernels' own tests; runs these, the tests of operators,
# layers, models and training on the GPU, the claims of a GPU, and every operator under each tool of compute-sanitizer.
# A step that fails or runs out of its time is noted, and the next one begins. OUT gets run.log, device.json (device,
# driver, compiler, commit, what passed), claims.json and training.json.
# Needs CUDA 12.8 or newer, g++, git, and a python3 (PYTHON) with torch >= 2.11 for CUDA, pybind11, cmake, ninja,
# setuptools, numpy and pytest; no network. Exit codes: 0 all passed, 1 not, 77 no GPU here: then all is built, for ARCH.
set -uo pipefail
[ $# -eq 1 ] || { sed -n '2,9s/^# //p' "$0" >&2; exit 2; }
mkdir -p "$1"
out=$(cd "$1" && pwd)
cd "$(dirname "$0")/../.."
exec > >(tee "$out/run.log") 2>&1

NVCC=${NVCC:-nvcc}
PYTHON=${PYTHON:-python3}
BUDGET_S=${BUDGET_S:-520}  # of the whole; a step gets what is left of it at most
jobs=${MAX_JOBS:-$(nproc)}
capability=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader --id=0 2>/dev/null | tr -d ' .')
case ${capability:-none} in
  none | *[!0-9]*) found=sm_90a ;;  # to build where no GPU is
  9? | 1??) found=sm_${capability}a ;;
  *) found=sm_$capability ;;
esac
ARCH=${ARCH:-$found}
SECONDS=0
started=$(date -u +%Y-%m-%dT%H:%M:%SZ)
work=$(mktemp -d)
pids=()
stop() {  # what still runs ends with this script
  [ ${#pids[@]} -eq 0 ] || kill "${pids[@]}" 2>/dev/null
  rm -rf "$work"
}
trap stop EXIT
trap 'exit 143' INT TERM
export PYTHONPATH=$PWD GMOE_EXT_REQUIRE_NATIVE=1

status=0
names=()
declare -A codes times
note() {  # name, exit code, seconds
  names+=("$1")
  codes[$1]=$2
  times[$1]=$3
  [ "$2" -eq 0 ] || status=1
  echo "== $1: $([ "$2" -eq 0 ] && echo passed || echo "FAILED, exit code $2$([ "$2" -eq 124 ] && echo ' (out of time)')") in $3 s"
}
running=()
start() {  # name, most seconds, command: beside others, for no longer than what is left of the whole
  local name=$1 most=$2 left=$((BUDGET_S - SECONDS))
  shift 2
  (
    begin=$SECONDS code=124
    if [ "$left" -gt 5 ]; then
      timeout -k 5 $((most < left ? most : left)) "$@" >"$work/$name.log" 2>&1 &
      child=$!
      trap 'kill "$child"' TERM  # timeout hands it on to all that the command started
      code=0
      wait "$child" || code=$?
    fi
    touch "$work/$name.log"
    echo "$code $((SECONDS - begin))" >"$work/$name.done"
  ) &
  pids+=($!)
  running+=("$name")
}
finish() {  # waits for all that was started; of their output the end is kept
  local name code seconds
  for name in "${!pids[@]}"; do wait "${pids[$name]}"; done
  for name in "${running[@]}"; do
    read -r code seconds <"$work/$name.done"
    echo "== $name"
    tail -c 1000000 "$work/$name.log"
    note "$name" "$code" "$seconds"
  done
  pids=()
  running=()
}
step() {  # name, most seconds, command: alone
  start "$@"
  finish
}

build_kernel_tests() {  # without the tests of files and students, which have no kernel on a device
  local flags="-std=c++20 -O3 -lineinfo -arch=$ARCH -Icsrc -DGMOE_TEST_CUDA -DGMOE_WAIT_FOR_LAUNCHES"
  flags="$flags -Xptxas -warn-spills"
  ls csrc/core/cuda/*.cu csrc/tests/*_test.cpp bench/device/tests_main.cpp |
    grep -Ev 'csrc/tests/(c_api|mutated_files|student)_test\.cpp$' |
    # shellcheck disable=SC2016
    xargs -P "$jobs" -I{} sh -c '"$0" $1 -c "$2" -o "$3/$(echo "$2" | tr / _).o"' "$NVCC" "$flags" {} "$work" &&
    "$NVCC" -arch="$ARCH" "$work"/*.o -o "$work/kernel_tests"
}
export -f build_kernel_tests
export NVCC ARCH jobs work
built_for=$(echo "${ARCH#sm_}" | sed -E 's/^([0-9]+)([0-9][af]?)$/\1.\2/')
echo "building for $ARCH with $jobs jobs: $("$NVCC" --version | sed -n 's/.*release.*V/nvcc /p'), $("$PYTHON" --version)"
start build 300 env FORCE_CUDA=1 TORCH_CUDA_ARCH_LIST="$built_for" MAX_JOBS="$jobs" "$PYTHON" setup.py build_ext --inplace
start build_kernel_tests 300 bash -c build_kernel_tests
finish

if [ -x "$work/kernel_tests" ]; then
  timeout 20 "$work/kernel_tests" "no test has this name" >"$work/device.log" 2>&1
  [ $? -eq 77 ] && { cat "$work/device.log"; exit 77; }
elif ! nvidia-smi >/dev/null 2>&1; then
  echo "no GPU here"
  exit 77
fi

small="-m bench.device.small_calls"
claims="-m bench.claims --device cuda --without torch.compile --seconds 1"
step kernel_tests 60 "$work/kernel_tests"
on_gpu() {  # name, tests: those on the GPU
  local name=$1
  shift
  start "$name" 150 "$PYTHON" -m pytest -q -p no:cacheprovider -m "not slow" -k cuda "$@"
}
contract=tests/ops/test_contract
on_gpu tests_of_calls ${contract}_dispatch.py ${contract}_errors.py ${contract}_device.py
on_gpu tests_of_results ${contract}_forward.py ${contract}_determinism.py
on_gpu tests_of_gradients ${contract}_gradient.py
on_gpu tests_of_operators tests/ops --ignore-glob "*/test_contract_*"
on_gpu tests_of_models tests/nn tests/models tests/train/test_{device_steps,runs_on_devices}.py
finish
# shellcheck disable=SC2086
step claims 120 "$PYTHON" $claims --json "$out/claims.json" --only "cuda routing" --only "cuda dispatch" \
  --only "cuda sparse" --only "cuda gradients" --only "cuda inference"
# shellcheck disable=SC2086
step training 90 "$PYTHON" $claims --json "$out/training.json" --only "cuda training"

export PYTORCH_NO_CUDA_MEMORY_CACHING=1
sanitize() {  # name, tool, command
  local name=$1 tool=$2
  shift 2
  start "$name" 100 compute-sanitizer --tool "$tool" --error-exitcode 1 --print-limit 5 --target-processes all "$@"
}
for tool in memcheck racecheck synccheck; do sanitize "$tool" "$tool" "$work/kernel_tests" topk; done
# shellcheck disable=SC2086
for tool in memcheck initcheck; do sanitize "operators_$tool" "$tool" "$PYTHON" $small; done
finish

steps=()
for name in "${names[@]}"; do steps+=("$name=${codes[$name]}=${times[$name]}"); done
"$PYTHON" - "$out/device.json" "$started" "$SECONDS" "$("$NVCC" --version | sed -n 's/.*release.*V//p')" \
  "$(git rev-parse HEAD 2>/dev/null || echo unknown)" \
  "$(nvidia-smi --query-gpu=name,driver_version --format=csv,noheader --id=0)" "${steps[@]}" <<'PYTHON'
import json
import sys

path, started, seconds, nvcc, commit, gpu, *steps = sys.argv[1:]
device, driver = (part.strip() for part in gpu.rsplit(",", 1))
taken = {name: {"passed": code == "0", "exit_code": int(code), "seconds": int(took)}
         for name, code, took in (step.split("=") for step in steps)}
report = {"device": device, "driver": driver, "nvcc": nvcc, "commit": commit, "started": started}
with open(path, "w") as file:
    json.dump({**report, "seconds": int(seconds), "steps": taken}, file, indent=1)
    file.write("\n")
PYTHON
echo "$out/device.json: $([ $status -eq 0 ] && echo "all passed" || echo "some FAILED") in $SECONDS s"
exit $status
