# Makes, or reuses, the project's Python environment and activates it. Source it from a script:
#   source "$(dirname "$0")/env.sh"
# VENV chooses its folder (default .venv in the repository); PYTHON the interpreter it is made with.
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
cd "$ROOT"
VENV="${VENV:-$ROOT/.venv}"
STAMP="$VENV/.requirements"

if [ ! -x "$VENV/bin/python" ]; then
    echo "making the environment in $VENV"
    "${PYTHON:-python3}" -m venv "$VENV"
fi
# shellcheck disable=SC1091
source "$VENV/bin/activate"
if ! cmp -s <(cat requirements.txt requirements-dev.txt pyproject.toml) "$STAMP"; then
    echo "installing requirements (PyTorch with CUDA is several GB the first time)"
    python -m pip install --quiet --upgrade pip
    python -m pip install --quiet -r requirements-dev.txt
    python -m pip install --quiet --no-deps --editable .
    cat requirements.txt requirements-dev.txt pyproject.toml >"$STAMP"
fi

# Threads that wait in a busy loop starve the other processes of a small machine.
export OMP_WAIT_POLICY="${OMP_WAIT_POLICY:-PASSIVE}"
