#!/usr/bin/env bash
# Make the environment if it is missing, then check style and run the tests: ./test.sh [flags of pytest]
set -euo pipefail
cd "$(dirname "$0")"
source ./environment.sh requirements-dev.txt
.venv/bin/ruff check .
.venv/bin/ruff format --check .
cores=$(env -u OMP_NUM_THREADS nproc) # which would count threads of OpenMP instead
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} # tests run on all cores; threads of each would wait for each other
# One more than there are cores: some tests wait for processes and for a browser.
exec .venv/bin/python -m pytest -n "$((cores + 1))" --dist worksteal "$@"
