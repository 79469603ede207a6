# shellcheck shell=bash disable=SC2154
# What follows is the same for every job; the values are above.
set -uo pipefail

usage() {
  cat <<EOF
usage: $0 up|status|logs|stop|delete

  up       requests the slices, waits for them, starts the job on all of their hosts,
           starts it again after failures and preemptions, and deletes the slices when
           it has finished. Interrupted, it goes on when it is called again.
  status   shows the state of the request and of each host
  logs     follows the log of the first host
  stop     stops the job after it has saved; the slices stay
  delete   deletes the slices
EOF
}

tpus() {
  gcloud compute tpus queued-resources "$@" --project="$project" --zone="$zone"
}

on_all() {
  tpus ssh "$name" --quiet --node=all --worker=all --command="$1"
}

# The state of the request, such as ACTIVE; nothing if there is none.
state() {
  tpus describe "$name" --format='value(state.state)' 2>/dev/null
}

create() {
  echo "Requesting $nodes x $accelerator_type in $zone."
  tpus create "$name" --accelerator-type="$accelerator_type" \
    --runtime-version="$runtime_version" "${flags[@]}"
}

delete() {
  tpus delete "$name" --force --quiet
}

# Returns once the slices are there, however often they are taken away. Gives up after
# ten requests in a row that were refused or failed.
ensure_active() {
  local now refused=0 failed=0
  while ((refused + failed < 10)); do
    now=$(state)
    # One that is there was not refused; only the connection was gone.
    [[ -z $now ]] || refused=0
    case $now in
      ACTIVE) return ;;
      '')
        create || {
          refused=$((refused + 1))
          sleep "$poll_seconds"
        }
        ;;
      FAILED)
        failed=$((failed + 1))
        echo 'The request failed; requesting the slices again.' >&2
        tpus describe "$name" --format='yaml(state)' >&2
        delete
        sleep "$poll_seconds"
        ;;
      SUSPENDING | SUSPENDED)
        failed=0
        echo 'The slices were taken away; requesting them again.'
        delete || sleep "$poll_seconds"
        ;;
      *) sleep "$poll_seconds" ;;
    esac
  done
  echo "Gave up after 10 requests without a slice; the cause is above. Mend it and call" \
    "'$0 up' again." >&2
  return 1
}

# One line a host: what its container does, and its exit code.
containers() {
  on_all "sudo docker inspect --format \
    'container {{.State.Status}} {{.State.ExitCode}}' '$name' 2>/dev/null ||
    echo 'container missing 0'" 2>/dev/null | grep '^container '
}

# What the job does: new, running, saved, failed, finished or unreachable.
look() {
  containers | awk -v hosts="$hosts" -v saved="$saved" '
    $2 == "missing" { missing++; next }
    $2 != "exited" && $2 != "dead" { running++; next }
    $3 == 0 { finished++; next }
    $3 == saved { kept++; next }
    { failed++ }
    END {
      if (NR < hosts) print "unreachable"
      else if (missing == hosts) print "new"
      else if (failed || missing) print "failed"
      else if (kept) print "saved"
      else if (running) print "running"
      else print "finished"
    }'
}

# Whatever still runs may save first; then nothing is left of the containers.
clear_all() {
  on_all "sudo docker stop -t $grace_seconds '$name' >/dev/null 2>&1
    sudo docker rm --force '$name' >/dev/null 2>&1; true"
}

up() {
  local failures=0
  while true; do
    ensure_active || return
    case $(look) in
      new)
        echo "Starting on $hosts hosts."
        on_all "$start" || sleep "$poll_seconds"
        ;;
      finished)
        echo 'Finished.'
        delete
        return
        ;;
      saved)
        echo 'Saved; starting again.'
        clear_all
        ;;
      failed)
        failures=$((failures + 1))
        echo "Failed, for the $failures. time; the end of the logs:" >&2
        on_all "sudo docker logs --tail 20 '$name'" >&2
        if ((failures > max_restarts)); then
          echo "Gave up after $max_restarts restarts. The slices are still there; look" \
            "at them with '$0 logs', or delete them with '$0 delete'." >&2
          return 1
        fi
        clear_all
        ;;
      *) sleep "$poll_seconds" ;;
    esac
  done
}

case ${1:-} in
  up) up ;;
  status)
    state
    containers
    ;;
  logs)
    tpus ssh "$name" --node=0 --worker=0 --command="sudo docker logs --follow '$name'"
    ;;
  stop) clear_all ;;
  delete) delete ;;
  -h | --help) usage ;;
  *)
    usage >&2
    exit 2
    ;;
esac
