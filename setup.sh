#!/usr/bin/env bash
# What `make setup` does: FFCV's system libraries, a virtual environment, the pinned dependencies.
# `./setup.sh chromium`: the browser of `make test-browser` instead, where there is none and it may be installed.
set -euo pipefail
cd "$(dirname "$0")"

python="${PYTHON:-python3}"
venv="${VENV:-.venv}"
libraries=(libopencv-dev libturbojpeg0-dev pkg-config)

missing_libraries() {
  command -v pkg-config > /dev/null && pkg-config --exists opencv4 libturbojpeg && return 1
  return 0
}

as_root=()
if [ "$(id -u)" != 0 ]; then as_root=(sudo -n); fi

may_install() {
  command -v apt-get > /dev/null && "${as_root[@]}" true 2> /dev/null
}

install_packages() { # packages...
  export DEBIAN_FRONTEND=noninteractive
  "${as_root[@]}" apt-get install -qq -y --no-install-recommends "$@" > /dev/null 2>&1 || {
    "${as_root[@]}" apt-get update -qq
    "${as_root[@]}" apt-get install -qq -y --no-install-recommends "$@" > /dev/null
  }
}

if [ "${1-}" = chromium ]; then
  for name in chromium chromium-browser google-chrome google-chrome-stable; do
    command -v "$name" > /dev/null && exit 0
  done
  if may_install; then
    echo "installing chromium"
    install_packages chromium || echo "chromium could not be installed" >&2
  fi
  exit 0
fi

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
  echo "error: Python 3.11 or newer is needed, $python is older; set PYTHON=/path/to/python3.11" >&2
  exit 2
}

if missing_libraries; then
  if may_install; then
    echo "installing ${libraries[*]} (FFCV is built against them)"
    install_packages "${libraries[@]}"
  else
    echo "error: FFCV needs ${libraries[*]}; install them (apt-get install ${libraries[*]}) and try again" >&2
    exit 2
  fi
fi

[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
echo "installing the dependencies of constraints.txt into $venv (several minutes the first time)"
"$venv/bin/pip" install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
