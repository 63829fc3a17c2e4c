#!/bin/sh
# The tests of the built pages need a Chromium and npm. Where Debian's packages
# may be installed, installs what is missing; elsewhere the tests say what to do. With
# the argument firefox-esr, that too: its tests are left out where it cannot be had.
missing=
command -v chromium >/dev/null || command -v google-chrome >/dev/null \
  || command -v chromium-browser >/dev/null || missing="chromium fonts-dejavu-core"
command -v npm >/dev/null || missing="$missing npm"
if [ -n "$missing" ] && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
  echo "Installing for the browser tests: $missing"
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -qq && apt-get install -y -qq --no-install-recommends $missing \
    || echo "apt-get could not install: $missing"
fi
if [ "$1" = firefox-esr ] && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null \
  && ! command -v firefox >/dev/null && ! command -v firefox-esr >/dev/null; then
  echo "Installing for the browser tests: firefox-esr"
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -qq && apt-get install -y -qq --no-install-recommends \
    firefox-esr >/dev/null || echo "apt-get could not install: firefox-esr"
fi
