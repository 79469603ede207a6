#!/usr/bin/env bash
set -euo pipefail

usage() {
  cat <<'END'
usage: launch/shipped.sh [--out DIR] [--copies N] [--config.FIELD=VALUE ...]

Trains the model that comes with the package, `composer_jax.load('demo')`, and exports it
to DIR/export, in about ten minutes on one recent GPU. Trainings that do not wait for one
another run at the same time. Interrupted, it goes on where it was when run again.

  --out DIR     where data and models go (default: shipped/ in the repository)
  --copies N    of each training picture, each over another background (default 4)
  --config.FIELD=VALUE
                for all trainings, such as --config.train.steps=20 to try it out

COMPOSER_JAX in the environment is the command to use (default: the one in .venv).
END
}

die() {
  printf 'shipped.sh: %s\n' "$1" >&2
  exit 1
}

unset CDPATH
root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
out=$root/shipped copies=4 more=()
while (($#)); do
  case $1 in
    --out | --copies)
      (($# > 1)) || die "$1 needs a value."
      printf -v "${1#--}" '%s' "$2"
      shift
      ;;
    --config.*=*) more+=("$1") ;;
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
[[ $copies =~ ^[1-9][0-9]*$ ]] || die "--copies is '$copies'; give a number above 0."
mkdir -p -- "$out/logs"
out=$(cd -- "$out" && pwd -P)
cd -- "$root"
read -ra composer_jax <<<"${COMPOSER_JAX:-$root/.venv/bin/composer-jax}"
# Four trainings share the device.
export XLA_PYTHON_CLIENT_MEM_FRACTION=${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.22}
# Ends what this shell has started, which saves first.
stop() {
  local jobs
  mapfile -t jobs < <(jobs -p)
  ((${#jobs[@]} == 0)) || kill "${jobs[@]}" 2>/dev/null || true
  wait
}
trap stop EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

say() {
  printf '%4d s  %s\n' "$SECONDS" "$*"
}

# Runs a command under a name; what it prints goes to a log: step NAME COMMAND...
step() {
  local name=$1 status=0
  shift
  trap stop EXIT  # Not inherited by what runs in the background.
  trap 'exit 143' TERM
  say "$name ..."
  "$@" &>"$out/logs/$name.log" &
  wait $! || status=$?
  if ((status)); then
    tail -n 20 -- "$out/logs/$name.log" >&2
    die "$name ended with status $status; see $out/logs/$name.log."
  fi
  say "$name: done"
}

prepare() {
  local name=$1
  shift
  step "$name" "${composer_jax[@]}" prepare --source twemoji --out "$out/$name" \
    --copies "$copies" --workers "$(nproc)" "$@"
}

# Trains one stage: train FOLDER CONFIG DATA
train() {
  step "$1" "${composer_jax[@]}" train --config "configs/shipped/$2.py" \
    --workdir "$out/model/$1" "--config.data.path=$out/$3" "${more[@]}"
  [[ -e $out/model/$1/finished ]] || die "$1 was stopped; run the same command again."
}

wait_for() {
  wait "$@" || exit
}

prepare data128 --size 128 --conditions none &
larger=$!
prepare data --size 64
train encoder dual_encoder data &
encoder=$!
train upsampler upsampler data &
upsampler=$!
wait_for "$larger"
train upsampler128 upsampler128 data128 &
upsampler128=$!
wait_for "$encoder"
step embed "${composer_jax[@]}" prepare --onto "$out/data" \
  --conditions semantics,caption --encoder "$out/model/encoder" --overwrite
train prior prior data &
prior=$!
train base base data
for each in "$prior" "$upsampler" "$upsampler128"; do
  wait_for "$each"
done
[[ -e $out/export/model.json ]] || step export "${composer_jax[@]}" export --workdir "$out/model" --out "$out/export" \
  --dtype float16 --compute float32
say "the model: $out/export"
