#!/usr/bin/env bash
# What `make setup` does: FFCV's system libraries, a virtual environment, the pinned dependencies.
set -euo pipefail
cd "$(dirname "$0")"

python="${PYTHON:-python3}"
venv="${VENV:-.venv}"
libraries=(libopencv-dev libturbojpeg0-dev pkg-config)

missing_libraries() {
  command -v pkg-config > /dev/null && pkg-config --exists opencv4 libturbojpeg && return 1
  return 0
}

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
  echo "error: Python 3.11 or newer is needed, $python is older; set PYTHON=/path/to/python3.11" >&2
  exit 2
}

if missing_libraries; then
  as_root=()
  if [ "$(id -u)" != 0 ]; then as_root=(sudo -n); fi
  if command -v apt-get > /dev/null && "${as_root[@]}" true 2> /dev/null; then
    echo "installing ${libraries[*]} (FFCV is built against them)"
    export DEBIAN_FRONTEND=noninteractive
    "${as_root[@]}" apt-get install -qq -y --no-install-recommends "${libraries[@]}" > /dev/null 2>&1 || {
      "${as_root[@]}" apt-get update -qq
      "${as_root[@]}" apt-get install -qq -y --no-install-recommends "${libraries[@]}" > /dev/null
    }
  else
    echo "error: FFCV needs ${libraries[*]}; install them (apt-get install ${libraries[*]}) and try again" >&2
    exit 2
  fi
fi

[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
echo "installing the dependencies of constraints.txt into $venv (several minutes the first time)"
"$venv/bin/pip" install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
