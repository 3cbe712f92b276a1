#!/usr/bin/env bash
# What a machine with a GPU is for: bench/device/run.sh OUT
# Builds the CUDA kernels and their tests with nvcc for the GPU that is here, runs the tests on it, and again under each
# tool of compute-sanitizer. OUT gets run.log and device.json: device, driver, compiler, commit, and what passed.
# Needs CUDA 12.8 or newer, g++ and python3; no torch, no network. Exit codes: 0 all passed, 1 not, 77 no GPU here.
set -euo pipefail
[ $# -eq 1 ] || { sed -n '2,5s/^# //p' "$0" >&2; exit 2; }
mkdir -p "$1"
out=$(cd "$1" && pwd)
cd "$(dirname "$0")/../.."
exec > >(tee "$out/run.log") 2>&1

NVCC=${NVCC:-nvcc}
ARCH=${ARCH:-native}  # sm_90a, say, to build where no GPU is
SECONDS=0
started=$(date -u +%Y-%m-%dT%H:%M:%SZ)
build=$(mktemp -d)
trap 'rm -rf "$build"' EXIT

# The tests of the executor itself, and its program, stay on the host.
sources=$(ls csrc/core/cuda/*.cu csrc/tests/cuda/*.cpp bench/device/tests_main.cpp |
  grep -vE 'csrc/tests/cuda/(executor|main|mutation)\.cpp$')
flags="-std=c++20 -O3 -lineinfo -arch=$ARCH -Icsrc -DGMOE_WAIT_FOR_LAUNCHES -Xptxas -warn-spills"
echo "building for $ARCH: $(echo "$sources" | wc -l) files"
# shellcheck disable=SC2086
echo "$sources" | xargs -P "${MAX_JOBS:-$(nproc)}" -I{} sh -c '
  "$0" $1 -c "$2" -o "$3/$(echo "$2" | tr / _).o"' "$NVCC" "$flags" {} "$build"
"$NVCC" -arch="$ARCH" "$build"/*.o -o "$build/device_tests"
echo "built in $SECONDS s"

declare -A passed
status=0
run() {  # name of the step, command: notes whether it passed, goes on if not
  local name=$1 begin=$SECONDS code=0
  shift
  "$@" || code=$?
  [ $code -eq 77 ] && exit 77
  passed[$name]=$([ $code -eq 0 ] && echo true || echo false)
  [ $code -eq 0 ] || status=1
  echo "$name: $([ $code -eq 0 ] && echo passed || echo "FAILED, exit code $code") in $((SECONDS - begin)) s"
}
run tests "$build/device_tests"
for tool in memcheck racecheck synccheck; do
  run "$tool" timeout 90 compute-sanitizer --tool "$tool" --error-exitcode 1 --print-limit 5 "$build/device_tests" topk
done

steps=""
for name in "${!passed[@]}"; do steps="$steps $name=${passed[$name]}"; done
# shellcheck disable=SC2086
python3 - "$out/device.json" "$started" "$SECONDS" "$("$NVCC" --version | sed -n 's/.*release.*V//p')" \
  "$(git rev-parse HEAD 2>/dev/null || echo unknown)" \
  "$(nvidia-smi --query-gpu=name,driver_version --format=csv,noheader --id=0)" $steps <<'PYTHON'
import json
import sys

path, started, seconds, nvcc, commit, gpu, *steps = sys.argv[1:]
device, driver = (part.strip() for part in gpu.rsplit(",", 1))
passed = {name: value == "true" for name, value in (step.split("=") for step in steps)}
report = {"device": device, "driver": driver, "nvcc": nvcc, "commit": commit, "started": started}
with open(path, "w") as file:
    json.dump({**report, "seconds": int(seconds), "passed": passed}, file, indent=1, sort_keys=True)
    file.write("\n")
PYTHON
echo "$out/device.json: $([ $status -eq 0 ] && echo "all passed" || echo "some FAILED") in $SECONDS s"
exit $status
