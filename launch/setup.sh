#!/usr/bin/env bash
set -euo pipefail

usage() {
  cat <<'END'
usage: launch/setup.sh [--test]

Makes .venv at the repository root, with the packages that requirements.lock pins and
the command composer-jax. Does nothing if that is up to date; starts anew if an earlier
installation was interrupted.

  --test   adds requirements-test.lock: what launch/test.sh needs; and a Chromium, by
           apt-get, where none is found

The environment variable PYTHON names the interpreter (3.11 or newer) to build on.
END
}

die() {
  printf 'setup.sh: %s\n' "$1" >&2
  exit 1
}

kind=runtime
while (($#)); do
  case $1 in
    --test) kind='test' ;;
    -h | --help)
      usage
      exit
      ;;
    *)
      usage >&2
      die "unknown argument: $1"
      ;;
  esac
  shift
done

unset CDPATH
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
venv=$PWD/.venv
if [[ $kind == test ]]; then
  bash launch/chromium.sh >/dev/null
fi

new_enough() {
  "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

# Prints the interpreter to build on. The locked versions were resolved for 3.11.
find_python() {
  local candidate
  if [[ -n ${PYTHON:-} ]]; then
    new_enough "$PYTHON" || die "PYTHON=$PYTHON is not a Python of 3.11 or newer."
    printf '%s\n' "$PYTHON"
    return
  fi
  for candidate in python3.11 python3.12 python3.13 python3; do
    if new_enough "$candidate"; then
      printf '%s\n' "$candidate"
      return
    fi
  done
  die 'found no Python of 3.11 or newer; install one, or name it: PYTHON=/path/to/python'
}

# Prints a digest of the given files, the interpreter's version and where .venv lies
# (its scripts hold that path).
digest() {
  "$1" - "$venv" "${@:2}" <<'END'
import hashlib
import pathlib
import sys

text = repr((sys.version, sys.argv[1])).encode()
for path in sys.argv[2:]:
  text += pathlib.Path(path).read_bytes()
print(hashlib.sha256(text).hexdigest())
END
}

stamped() {
  [[ -x $venv/bin/python && -f $venv/stamp-$1 && $(<"$venv/stamp-$1") == "$2" ]]
}

# One installation at a time, where the system can tell.
if command -v flock >/dev/null; then
  exec 9<setup.py
  flock 9
fi

# Without PYTHON, whatever .venv was built on will do.
if [[ -z ${PYTHON:-} ]] && new_enough "$venv/bin/python"; then
  python=$venv/bin/python
else
  python=$(find_python)
fi
runtime_digest=$(digest "$python" setup.py requirements.lock)
test_digest=$(digest "$python" setup.py requirements.lock requirements-test.lock)

if stamped runtime "$runtime_digest"; then
  if [[ $kind == runtime ]] || stamped test "$test_digest"; then
    exit
  fi
fi

install() {
  "$venv/bin/python" -m pip install --quiet --no-input --disable-pip-version-check \
    --no-compile "$@" 9<&-
}

# Stamps are written last and removed first, so none means an unfinished .venv. What
# an older lock file asked for goes too.
if ! stamped runtime "$runtime_digest" || [[ -f $venv/stamp-test ]]; then
  if [[ -d $venv && ! -f $venv/made-by-setup ]]; then
    die "$venv is there, but not made by this script; move it away."
  fi
  python=$(find_python)
  rm -rf -- "$venv"
  mkdir -- "$venv"
  touch -- "$venv/made-by-setup"
  "$python" -m venv "$venv" ||
    die "$python cannot make virtual environments (on Debian: install python3-venv)."
  # The digest may have come from the interpreter of the .venv that is gone.
  runtime_digest=$(digest "$venv/bin/python" setup.py requirements.lock)
  test_digest=$(
    digest "$venv/bin/python" setup.py requirements.lock requirements-test.lock
  )
fi
rm -f -- "$venv"/stamp-*

if [[ $kind == test ]]; then
  printf 'Installing requirements-test.lock into %s, for some minutes.\n' "$venv"
  install -r requirements-test.lock
else
  printf 'Installing requirements.lock into %s, for a minute or more.\n' "$venv"
  install -r requirements.lock
fi
# With compat the folder itself is on the path, so new modules need no installation.
install --no-deps --no-build-isolation --config-settings editable_mode=compat -e .

printf '%s\n' "$runtime_digest" >"$venv/stamp-runtime"
if [[ $kind == test ]]; then
  printf '%s\n' "$test_digest" >"$venv/stamp-test"
fi
printf 'Installed in %d s.\n' "$SECONDS"
