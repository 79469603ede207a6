#!/usr/bin/env bash
set -euo pipefail

usage() {
  cat <<'END'
usage: launch/demo.sh [--minutes N] [--out DIR]

From nothing to a small Composer and a report of what it can do: prepares the Twemoji
pictures, trains an encoder, a prior, a base model and two upsamplers, then composes and
measures.
Interrupted, it goes on where it was when run again with the same arguments.

  --minutes N   minutes of training in all (default 12), shared out as
                1 : 0.5 : 7.75 : 1.5 : 0.75 to encoder, prior, base model and upsamplers;
                preparing and reporting come on top
  --out DIR     where data, models and report go (default: demo/ in the repository)
END
}

die() {
  printf 'demo.sh: %s\n' "$1" >&2
  exit 1
}

unset CDPATH
root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
minutes=12
out=$root/demo
while (($#)); do
  case $1 in
    --minutes | --out)
      (($# > 1)) || die "$1 needs a value."
      if [[ $1 == --out ]]; then out=$2; else minutes=$2; fi
      shift
      ;;
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
[[ $minutes =~ ^[0-9]*[.]?[0-9]+$ && $minutes =~ [1-9] ]] ||
  die "--minutes is '$minutes'; give a number above 0, such as 12."
[[ -n $out ]] || die '--out is empty.'

mkdir -p -- "$out"
out=$(cd -- "$out" && pwd -P)
cd -- "$root"
# Else every process would compile the sources of all packages anew.
unset PYTHONDONTWRITEBYTECODE
trap 'printf "\ndemo.sh: interrupted; run the same command again to go on.\n" >&2; exit 130' INT
trap 'exit 143' TERM

elapsed() {
  printf '%d min %02d s' "$(($1 / 60))" "$(($1 % 60))"
}

number=0
# Runs a command under a heading: step HEADING COMMAND...
step() {
  local heading=$1 start=$SECONDS status=0
  shift
  number=$((number + 1))
  printf '\n== %d of 10: %s\n' "$number" "$heading"
  "$@" || status=$?
  if ((status)); then
    printf '\ndemo.sh: "%s" ended with status %d after %s.\n' \
      "$heading" "$status" "$(elapsed $((SECONDS - start)))" >&2
    printf 'Run the same command again to go on from there.\n' >&2
    exit "$status"
  fi
  printf -- '-- %s (%s since the start)\n' \
    "$(elapsed $((SECONDS - start)))" "$(elapsed "$SECONDS")"
}

# The minutes of training for a share of the sum above, which is 11.5.
share() {
  LC_ALL=C awk -v all="$minutes" -v part="$1" \
    'BEGIN { printf "%.6g", all * part / 11.5 }'
}

composer_jax=$root/.venv/bin/composer-jax

# On a CPU, a device for each core shares a batch out better than the threads of one
# device do each operation. At most 8, as small batches are slow, and a power of two.
cores=$(getconf _NPROCESSORS_ONLN)
devices=1
while ((2 * devices <= cores && devices < 8)); do devices=$((2 * devices)); done
XLA_FLAGS+=" --xla_force_host_platform_device_count=$devices"
export XLA_FLAGS+=' --xla_cpu_multi_thread_eigen=false'

# Trains one stage: train CONFIG FOLDER DATA SHARE
train() {
  "$composer_jax" train --config "configs/demo/$1.py" --workdir "$out/model/$2" \
    "--config.data.path=$out/$3" "--config.train.minutes=$(share "$4")"
  # Stopped by a signal, it has saved and ended well, but is not done.
  [[ -e $out/model/$2/finished ]] || return 75
}

step 'installing' bash launch/setup.sh
step 'preparing pictures and their conditions' \
  "$composer_jax" prepare --source twemoji --out "$out/data" --size 64 --workers 2
step 'preparing the same pictures larger' \
  "$composer_jax" prepare --source twemoji --out "$out/data128" --size 128 \
  --conditions none --workers 2
step "training the encoder, $(share 1) minutes" train dual_encoder encoder data 1
step 'embedding pictures and captions' \
  "$composer_jax" prepare --onto "$out/data" --conditions semantics,caption \
  --encoder "$out/model/encoder" --overwrite
step "training the prior, $(share 0.5) minutes" train prior prior data 0.5
step "training the base model, $(share 7.75) minutes" train base base data 7.75
step "training the upsampler to 64, $(share 1.5) minutes" \
  train upsampler upsampler data 1.5
step "training the upsampler to 128, $(share 0.75) minutes" \
  train upsampler128 upsampler128 data128 0.75
step 'composing and measuring' \
  "$composer_jax" report --model "$out/model" --data "$out/data" --out "$out/report" --n 64

printf '\nThe report: %s\n' "$out/report/index.html"
