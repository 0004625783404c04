#!/usr/bin/env bash
# What to show on a machine with a GPU, which needs no network. Results go to $OUT.
#   benchmarks/gpu.sh check                   the tests marked gpu, then the benchmark against the plain formulation
#   LIMIT=360 benchmarks/gpu.sh train DIR     the paper's setting, then the modern recipe, trained in so many seconds
# Runs stay in $WORK (runs/within). TINY=1 is a form of both for a CPU, within two minutes.
set -euo pipefail
cd "$(dirname "$0")/.."
export OUT=${OUT:-benchmarks/results} PYTHONPATH=.${PYTHONPATH:+:$PYTHONPATH}
python=.venv/bin/python
[ -x "$python" ] || python=python3
mkdir -p "$OUT"
case ${1:-} in
check)
    # A failing test must not keep the measurements back; it shows in the exit code.
    code=0
    "$python" -m pytest tests/gpu -q -rs -p no:cacheprovider || code=$?
    if [ -n "${TINY:-}" ]; then
        "$python" benchmarks/run.py --case '{"case": "step", "way": "fast", "size": 64, "batch": 1, "steps": 1, "repeats": 1}'
    else
        "$python" benchmarks/run.py --out "$OUT"
    fi
    exit $code
    ;;
train)
    exec "$python" -m benchmarks.within "$2" --limit "${LIMIT:-360}" --out "$OUT" --work "${WORK:-runs/within}" ${TINY:+--tiny}
    ;;
*)
    echo "usage: $0 check | train DIR" >&2
    exit 2
    ;;
esac
