# Sourced by quickstart.sh and test.sh: makes .venv beside the project and installs a requirements file into it, once.

cd "$(dirname "${BASH_SOURCE[0]}")/.."

find_python() {
    local candidate
    for candidate in "${PYTHON:-python3}" python3.13 python3.12 python3.11 python3.10; do
        if "$candidate" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 14))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    echo "error: this needs Python 3.10 to 3.13, found $("${PYTHON:-python3}" --version 2>&1); name one by PYTHON=..." >&2
    return 1
}

use_environment() { # use_environment REQUIREMENTS_FILE
    local python stamp
    if [ ! -x .venv/bin/python ]; then
        python=$(find_python) || exit 2
        "$python" -m venv .venv
    fi
    stamp=".venv/installed-$(cat requirements*.txt | cksum | cut -d' ' -f1)-$1"
    if [ ! -e "$stamp" ]; then
        echo "installing $1 into .venv (once; PyTorch is large)"
        .venv/bin/python -m pip install --quiet --disable-pip-version-check -r "$1"
        touch "$stamp"
    fi
}
