#!/usr/bin/env bash
# Make the environment if it is missing, then check style and run the tests: ./test.sh [flags of pytest]
set -euo pipefail
cd "$(dirname "$0")"
source ./environment.sh requirements-dev.txt
.venv/bin/ruff check .
.venv/bin/ruff format --check .
exec .venv/bin/python -m pytest -n auto "$@"
