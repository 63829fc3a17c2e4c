#!/bin/sh
# Prints the newest Python that suits the pins and can make an environment, or tries
# only those named as arguments. Each is run: a name may lead nowhere (pyenv's often
# do), and Debian's own Python comes without venv.
for name in ${*:-python3.14 python3.13 python3.12 python3.11 python3 python}; do
  if "$name" -c 'import ensurepip, sys, venv
sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))' >/dev/null 2>&1; then
    echo "$name"
    exit
  fi
done
{
  echo "No Python from 3.11 to 3.14 that can make an environment (${*:-none found})."
  echo "Install one (Debian: apt-get install python3 python3-venv), or name it:"
  echo "make book PYTHON=/path/to/python3.12"
} >&2
exit 1
