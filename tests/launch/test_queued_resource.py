from __future__ import annotations

import subprocess

import pytest

from launch import job, queued_resource

FIELDS = {
  'name': 'base',
  'config': 'configs/paper/base64_stage1.py',
  'topology': 'v5e:4x4',
  'image': 'europe-docker.pkg.dev/p/r/composer-jax:1',
  'bucket': 'gs://mine',
  'environment': {'HF_TOKEN': 'secret:hf/latest', 'LEVEL': "it's"},
  'max_restarts': 1,
  'spot': True,
}
OPTIONS = {'project': 'my-project', 'zone': 'us-east5-a'}


def script(options=(), **changes):
  made = job.from_dict(FIELDS | changes)
  asked = queued_resource.Options(**OPTIONS | dict(options))
  [(name, text)] = queued_resource.render(made, asked).items()
  assert name == 'base.sh'
  return text


@pytest.mark.parametrize(
  'changes',
  [{}, {'slices': 3}, {'environment': {}, 'spot': False}],
  ids=str,
)
def test_scripts_pass_shellcheck(shellcheck, changes):
  shellcheck(script(**changes))
  shellcheck(script({'setup': 'sudo apt-get install -y gcsfuse'}, **changes))
  # What runs on the hosts is text to the script, so it is checked by itself.
  start = (
    script(**changes).partition("END_OF_START'\n")[2].partition('\nEND_OF_START')[0]
  )
  shellcheck('#!/usr/bin/env bash\n' + start + '\n')


def test_no_secret_is_written_down():
  text = script()
  assert 'gcloud secrets versions access latest --secret=hf' in text
  assert '--env=HF_TOKEN \\' in text
  assert '--env=HF_TOKEN=' not in text


# A Google Cloud with four hosts, whose state is in files: `state`, and `look`, which
# holds a line for each time that the containers are looked at.
GCLOUD = r"""
echo "$*" >>"$FOLDER/calls"
case "$*" in
  *"queued-resources describe"*) cat "$FOLDER/state" 2>/dev/null ;;
  *"queued-resources create"*)
    # A line for each request of how it ends; if there is none, well.
    end=$(head -n 1 "$FOLDER/requests" 2>/dev/null)
    sed -i 1d "$FOLDER/requests" 2>/dev/null
    [[ $end != refused ]] || exit 1
    echo "${end:-ACTIVE}" >"$FOLDER/state"
    ;;
  *"queued-resources delete"*) rm "$FOLDER/state" ;;
  *"docker inspect"*)
    [[ -s $FOLDER/look ]] || { echo 'too many looks' >&2; kill "$PPID"; exit 1; }
    line=$(head -n 1 "$FOLDER/look")
    sed -i 1d "$FOLDER/look"
    if [[ $line == 'taken away' ]]; then
      echo SUSPENDED >"$FOLDER/state"
      exit 1
    fi
    tr ',' '\n' <<<"$line" | sed 's/^/container /'
    ;;
  *"docker run"*) echo start >>"$FOLDER/done" ;;
  *"docker stop"*) echo clear >>"$FOLDER/done" ;;
esac
"""
NEW = 'missing 0,missing 0,missing 0,missing 0'
BUSY = 'running 0,running 0,running 0,running 0'
DONE = 'exited 0,exited 0,exited 0,exited 0'


def up(programs, *looks, slices=1, verb='up', requests=()):
  environment = programs(gcloud=GCLOUD)
  folder = environment['FOLDER']
  with open(f'{folder}/look', 'w') as file:
    file.writelines(f'{look}\n' for look in looks)
  with open(f'{folder}/requests', 'w') as file:
    file.writelines(f'{end}\n' for end in requests)
  done = subprocess.run(
    ['bash', '-c', script(slices=slices), 'base.sh', verb],
    env=environment | {'POLL_SECONDS': '0'},
    capture_output=True,
    text=True,
    timeout=60,
  )

  def lines(name):
    try:
      with open(f'{folder}/{name}') as file:
        return file.read().splitlines()
    except FileNotFoundError:
      return []

  assert lines('look') == [], done.stdout + done.stderr
  return done, lines


def test_slices_are_requested_used_and_deleted(programs):
  done, lines = up(
    programs, NEW, BUSY, BUSY, 'exited 0,running 0,exited 0,exited 0', DONE
  )
  assert done.returncode == 0, done.stderr
  assert lines('done') == ['start']
  [create] = [call for call in lines('calls') if 'queued-resources create' in call]
  assert create == (
    'compute tpus queued-resources create base --accelerator-type=v5litepod-16'
    ' --runtime-version=v2-alpha-tpuv5-lite --node-id=base --spot'
    ' --project=my-project --zone=us-east5-a'
  )
  assert 'delete base --force --quiet' in lines('calls')[-1]


def test_several_slices_are_one_request_of_several_nodes(programs):
  hosts = [','.join([look.split(',')[0]] * 12) for look in (NEW, BUSY, DONE)]
  done, lines = up(programs, *hosts, slices=3)
  assert done.returncode == 0
  [create] = [call for call in lines('calls') if 'queued-resources create' in call]
  assert '--node-count=3 --node-prefix=base' in create
  assert '--node-id' not in create


def test_a_saved_job_starts_again_without_being_counted(programs):
  saved = 'exited 75,running 0,exited 75,exited 75'
  done, lines = up(programs, NEW, saved, NEW, saved, NEW, saved, NEW, DONE)
  assert done.returncode == 0
  assert lines('done') == ['start', 'clear'] * 3 + ['start']


def test_slices_that_were_taken_away_are_requested_again(programs):
  done, lines = up(programs, NEW, BUSY, 'taken away', NEW, DONE)
  assert done.returncode == 0
  assert lines('done') == ['start', 'start']
  assert sum('queued-resources create' in call for call in lines('calls')) == 2


@pytest.mark.parametrize('end', ['refused', 'FAILED'])
def test_requests_that_come_to_nothing_are_given_up(programs, end):
  done, lines = up(programs, requests=[end] * 11)
  assert done.returncode == 1
  assert 'Gave up after 10 requests' in done.stderr
  assert len(lines('requests')) == 1


def test_slices_that_are_taken_away_ten_times_are_not_given_up(programs):
  ends = ['refused', 'FAILED', *['SUSPENDED'] * 11, *['FAILED'] * 8]
  done, lines = up(programs, NEW, DONE, requests=ends)
  assert done.returncode == 0, done.stderr
  assert lines('requests') == []


def test_a_host_that_does_not_answer_is_waited_for(programs):
  done, lines = up(programs, NEW, 'running 0,running 0,running 0', BUSY, DONE)
  assert done.returncode == 0
  assert lines('done') == ['start']


@pytest.mark.parametrize(
  'failure',
  [
    'running 0,exited 1,running 0,running 0',
    'running 0,exited 137,exited 75,running 0',
    'running 0,missing 0,running 0,running 0',  # A host that has started anew.
    'exited 76,exited 76,running 0,exited 76',
  ],
)
def test_failures_start_all_again_until_there_were_too_many(programs, failure):
  done, lines = up(programs, NEW, failure, NEW, failure)
  assert done.returncode == 1
  assert lines('done') == ['start', 'clear', 'start']
  assert 'Gave up after 1 restarts' in done.stderr
  # They cost money, but hold the cause.
  assert not any('queued-resources delete' in call for call in lines('calls'))


def test_called_again_it_goes_on_watching_what_runs(programs):
  done, lines = up(programs, BUSY, DONE)
  assert done.returncode == 0
  assert lines('done') == []


def test_verbs_that_there_are_not_are_refused(programs):
  done, _ = up(programs, verb='dance')
  assert done.returncode == 2
  assert 'usage: base.sh up|status|logs|stop|delete' in done.stderr


@pytest.mark.parametrize(
  ('options', 'changes', 'why'),
  [
    ({'project': ''}, {}, 'project is empty'),
    ({'zone': 'a b'}, {}, "zone is 'a b'"),
    ({'reserved': 'maybe'}, {}, "reserved is 'maybe'"),
    ({'reserved': 'yes'}, {'spot': True}, "spot is True and reserved 'yes'"),
    ({'setup': "echo it's"}, {}, 'setup is .*No closing quotation'),
    ({}, {'image': ''}, 'image is empty'),
    ({}, {'bucket': ''}, 'bucket is empty'),
    ({}, {'topology': 'gpu:2x8'}, 'has no TPUs'),
    ({}, {'bucket': '', 'volume': 'claim'}, 'volume is'),
    ({}, {'environment': {'HF_TOKEN': None}}, 'secret:hf_token/latest'),
  ],
)
def test_what_cannot_be_run_there_is_refused(options, changes, why):
  with pytest.raises(ValueError, match=why):
    script(options, **changes)
