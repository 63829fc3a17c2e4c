#!/bin/sh
# Checks the workflows: zizmor looks for what an attacker could use, actionlint, where
# it is installed, for mistakes. Both work without a network.
set -e
cd "$(dirname "$0")/.."
PATH="${VENV:-$PWD/.venv}/bin:$PATH"
zizmor --quiet --offline --persona auditor .github
if command -v actionlint >/dev/null; then
  actionlint .github/workflows/*.yml
else
  echo "actionlint is not installed: the workflows' syntax was not checked"
fi
