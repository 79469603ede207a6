#!/usr/bin/env bash
# Checks everything: style, types, tests. Arguments go to pytest.
set -euo pipefail
unset CDPATH
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
# Else every process would compile the sources of all packages anew.
unset PYTHONDONTWRITEBYTECODE
types=$(mktemp)
trap 'rm -f -- "$types"
  printf "Total time: %d min %d s\n" "$((SECONDS / 60))" "$((SECONDS % 60))"' EXIT

bash launch/setup.sh --test
# On an accelerator, tests of exact figures would have to be looser.
export JAX_PLATFORMS=${JAX_PLATFORMS:-cpu}
python=$PWD/.venv/bin/python

printf '\n== ruff check\n'
"$python" -m ruff check .
printf '\n== ruff format\n'
"$python" -m ruff format --check .
# The tests leave cores idle at times, in which the types are checked.
"$python" -m mypy >"$types" 2>&1 &
checking=$!
printf '\n== pytest\n'
status=0
# Two at a time, as compiling keeps one core busy; fixtures are shared within a file.
"$python" -m pytest -q --durations=15 --numprocesses=2 --dist=loadfile \
  --no-loadscope-reorder "$@" || status=$?
printf '\n== mypy\n'
wait "$checking" || status=$?
cat -- "$types"
exit "$status"
