#!/bin/sh
# Installs what the book needs: install.sh FOLDER [PYTHON], and makes the environment
# where there is none. uv does it in three seconds; where it cannot be had, plain pip.
set -e
cd "$(dirname "$0")/.."
folder=$1 python=$1/bin/python uv=$1/bin/uv
shift
export PIP_DISABLE_PIP_VERSION_CHECK=1
if [ ! -x "$python" ]; then
  base=$(sh tools/python.sh "$@")
  echo "Making $folder with $("$base" --version)"
  "$base" -m venv --clear --without-pip "$folder"
  "$base" -m pip --python "$python" install --quiet --no-compile uv==0.13.9 \
    2>/dev/null || true
fi
echo "Installing what the book needs into $folder"
if [ ! -x "$uv" ] || ! "$uv" pip install --quiet --python "$python" pip==26.3 \
    -r requirements-book.txt; then
  "$python" -m pip --version >/dev/null 2>&1 || "$python" -m ensurepip >/dev/null
  "$python" -m pip install --quiet pip==26.3  # a new one resolves in half the time
  "$python" -m pip install --quiet --no-compile -r requirements-book.txt
fi
