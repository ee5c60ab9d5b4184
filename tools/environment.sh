#!/bin/sh
# Makes .venv with the pinned packages. Names what the machine lacks, with the command that mends it.
# Usage: PYTHON=python3 sh tools/environment.sh EXTRAS
set -eu

python=${PYTHON:-python3}
extras=$1

fail() {
    echo "$1" >&2
    exit 1
}

command -v "$python" >/dev/null 2>&1 ||
    fail "There is no $python on this machine; install it: apt-get install python3 python3-venv"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    fail "$("$python" --version) is too old, 3.11 or newer is needed; name another one: make PYTHON=python3.12 …"
"$python" -c 'import ensurepip, venv' 2>/dev/null ||
    fail "This Python cannot make environments (venv is missing); install it: apt-get install python3-venv"

[ -x .venv/bin/python ] || "$python" -m venv .venv

echo "Installing the pinned packages into .venv (about 500 MB on disk; a minute or two the first time) …"
# The constraints hold for the build tools too.
PIP_CONSTRAINT=$(pwd)/constraints.txt PIP_DISABLE_PIP_VERSION_CHECK=1 \
    .venv/bin/python -m pip install --progress-bar on --editable ".[$extras]" ||
    fail "The packages could not be installed (see above); when the network is back, type the same command again."

.venv/bin/python -c 'import ctypes; ctypes.CDLL("libgomp.so.1")' 2>/dev/null ||
    fail "The inference engine needs libgomp.so.1, which this machine lacks; install it: apt-get install libgomp1"
