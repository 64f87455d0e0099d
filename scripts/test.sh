#!/usr/bin/env bash
# Makes or reuses the environment and runs the style check and the tests. Arguments go to pytest.
set -euo pipefail
source "$(dirname "$0")/env.sh"
bash scripts/browser.sh
ruff check .
python -m pytest "$@"
