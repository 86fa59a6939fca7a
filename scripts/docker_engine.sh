#!/usr/bin/env bash
# A Docker engine of its own in a folder, for tests and drills on a machine where none runs. Needs root.
#
#   scripts/docker_engine.sh start FOLDER     start it (installing Debian's docker.io if need be); prints DOCKER_HOST
#   scripts/docker_engine.sh kill FOLDER      SIGKILL, as when it crashes; `start` brings it back with what it had
#   scripts/docker_engine.sh stop FOLDER      stop it and its containers, and unmount what it leaves mounted
#
# It has no bridge and sets no packet filter rules, so the machine's network stays as it is: its containers use the host's
# network. Keep FOLDER short, a socket's path has at most 107 characters.
set -euo pipefail

command=${1:?start, kill or stop} folder=${2:?a folder}
host=unix://$folder/docker.sock
PATH=$PATH:/usr/sbin:/sbin

fail() { echo "error: $1" >&2; exit 1; }
# A killed process that nobody has waited for yet (state Z) still answers to its number.
lives() { [ -f "$1" ] && grep -qs '^State:[[:space:]]*[^ZX[:space:]]' "/proc/$(cat "$1")/status"; }
running() { lives "$folder/dockerd.pid"; }
answers() { [ -S "$folder/docker.sock" ] && docker --host "$host" version >/dev/null 2>&1; }

case $command in
start)
  [ "$(id -u)" = 0 ] || fail "starting a Docker engine needs root"
  if ! command -v dockerd >/dev/null; then
    command -v apt-get >/dev/null || fail "dockerd is not installed; install Docker Engine"
    lock=/var/lib/dpkg   # apt-get fails where another one is at work; crucible/rehearsal/apt.py has it, too
    { flock "$lock" apt-get update -qq && flock "$lock" apt-get install --yes -qq --no-install-recommends docker.io; } \
      >/dev/null 2>&1 \
      || fail "docker.io could not be installed by apt-get"
  fi
  mkdir -p "$folder"
  touch "$folder/crucible-engine"   # a drill may kill an engine that has this
  if ! running; then
    # containerd dies with a killed engine, but not at once; a new engine would take it for its own and wait for it.
    while lives "$folder/exec/containerd/containerd.pid"; do sleep 0.05; done
    rm -f "$folder/dockerd.pid" "$folder/exec/containerd/containerd.pid"
    setsid dockerd --host "$host" --data-root "$folder/data" --exec-root "$folder/exec" --pidfile "$folder/dockerd.pid" \
      --bridge none --iptables=false --ip-forward=false >>"$folder/dockerd.log" 2>&1 </dev/null &
    started=$!
  fi
  for _ in $(seq 600); do
    answers && { echo "$host"; exit 0; }
    [ -z "${started:-}" ] || kill -0 "$started" 2>/dev/null || break
    sleep 0.1
  done
  tail -n 3 "$folder/dockerd.log" >&2
  fail "the engine does not start; see $folder/dockerd.log"
  ;;
kill)
  running || fail "no engine runs in $folder"
  kill -KILL "$(cat "$folder/dockerd.pid")"
  while running; do sleep 0.05; done
  ;;
stop)
  if running; then
    engine=$(cat "$folder/dockerd.pid")
    kill -TERM "$engine"
    for _ in $(seq 900); do running || break; sleep 0.1; done
    ! running || fail "the engine (process $engine) does not end"
  fi
  for place in "$folder/exec/netns/default" "$folder/data"; do
    ! mountpoint -q "$place" || umount "$place"
  done
  ;;
*) fail "start, kill or stop" ;;
esac
