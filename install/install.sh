#!/usr/bin/env bash
# Install everything into one Python: the pinned packages, the mended Horovod, this project.
#
#   install/install.sh [PYTHON]        into the environment of PYTHON (default: python3)
#   install/install.sh PYTHON VENV     into the virtual environment VENV, made from PYTHON if missing
#   EXTRAS=tests,analysis,gpu          which extras of pyproject.toml (default: tests,analysis)
#
# The Makefile, environment.yml and the Dockerfile all call this script. pip's own settings
# (PIP_INDEX_URL, PIP_EXTRA_INDEX_URL, ...) select where packages come from, and with that whether
# torch is built for CUDA (the usual registry) or is the small build for CPUs (PyTorch's CPU index).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python=${1:-python3}
export PIP_DISABLE_PIP_VERSION_CHECK=1
say() { echo "install: $*" >&2; }

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    say "needs Python 3.11 or later, $python is $("$python" --version 2>&1); try make PYTHON=python3.11"
    exit 1
}
command -v "${CXX:-c++}" >/dev/null || {
    say "needs a C++17 compiler for Horovod, there is no ${CXX:-c++}; on Debian: apt-get install g++"
    exit 1
}

if [ -n "${2:-}" ]; then
    "$python" -m venv "$2"
    python=$2/bin/python
fi

say "installing the packages that Horovod is compiled against"
"$python" -m pip install -q -c install/constraints.txt -r install/build.txt
"$python" install/horovod.py
say "installing this project and its dependencies"
"$python" -m pip install -q -c install/constraints.txt --no-build-isolation \
    -e ".[${EXTRAS:-tests,analysis}]"
