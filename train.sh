#!/usr/bin/env bash
# Make the environment if it is missing, then train: ./train.sh [flags of main.py], such as ./train.sh --preset quick
set -euo pipefail
cd "$(dirname "$0")"
source ./environment.sh requirements.txt
exec .venv/bin/python main.py "$@"
