# Sourced by train.sh and test.sh: makes .venv and installs what the file $1 lists, unless that has been done before.
python=${PYTHON:-python3}
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    echo "error: Python 3.11 or later is needed; name one, such as PYTHON=python3.12 $0" >&2
    exit 2
fi
stamp=.venv/installed-$1
wanted=$(cat requirements.txt "$1")
if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
    echo "Installing $1 into .venv (once; PyTorch is a download of some GB)"
    "$python" -m venv .venv
    .venv/bin/python -m pip install --quiet --disable-pip-version-check -r "$1"
    echo "$wanted" > "$stamp"
fi
