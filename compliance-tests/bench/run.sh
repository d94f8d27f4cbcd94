#!/usr/bin/env bash
# Runs the load driver against Synapse and Guildhall on this machine, one after the other, and prints
# the table of figures and ratios. README.md beside this file says what is measured and how to read it.
#
#   bench/run.sh [--servers NAME,...] [--fjall] [--only SCENARIO,...] [--scale S] [--no-fill] [--out DIR]
#
#   --servers NAME,...  of synapse, guildhall-sled, guildhall-fjall (default: the first two)
#   --fjall             guildhall-fjall as well
#   --only, --scale     handed to the driver: a part of the scenarios, smaller counts
#   --no-fill           no start-up with 100,000 events
#   --out DIR           where the JSON files go (default: bench in cargo's target directory)
#
# Environment: GUILDHALL_BIN (default: built in release mode), LOAD_BIN (likewise), SYNAPSE_VENV (default:
# in the user's cache; made if it is not there), and GUILDHALL_BENCH_KEEP=1 keeps the servers' directories.
set -euo pipefail

bench=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=servers.sh
source "$bench/servers.sh"

servers=synapse,guildhall-sled
fill=yes
out=$target/bench
only=
driver_options=()
while [ $# -gt 0 ]; do
  case $1 in
    --servers) servers=$2 && shift ;;
    --fjall) servers=$servers,guildhall-fjall ;;
    --only) only=$2 && driver_options+=(--only "$2") && shift ;;
    --scale) driver_options+=(--scale "$2") && shift ;;
    --no-fill) fill=no ;;
    --out) out=$2 && shift ;;
    *)
      sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "$0" >&2
      exit 2
      ;;
  esac
  shift
done

raise_limits
if [[ $servers == *guildhall* ]]; then build_missing yes; else build_missing no; fi

dir=
finish() {
  local kept=
  stop_all
  if [ -n "$dir" ]; then
    if [ -n "${GUILDHALL_BENCH_KEEP:-}" ]; then kept=$dir; else rm -rf "$dir"; fi
  fi
  if [ -n "$kept" ]; then echo "bench: kept $kept" >&2; fi
  dir=
}
trap finish EXIT
trap 'exit 130' INT TERM

# time_start_up SERVER: restarts it five times. $times are the milliseconds each time until /versions was
# answered. Not in a subshell: the last server that is started here is the one that runs on.
time_start_up() {
  local from time
  times=()
  for _ in 1 2 3 4 5; do
    stop_server
    from=${EPOCHREALTIME/[.,]/}
    "$1_start"
    wait_until_up
    time=$((${EPOCHREALTIME/[.,]/} - from))
    times+=("$((time / 1000)).$(printf '%03d' $((time % 1000)))")
  done
}

# add_start_up FILE SCENARIO TIME...
add_start_up() {
  python3 - "$@" <<'PYTHON'
import json, statistics, sys
path, scenario, *times = sys.argv[1:]
times = [float(time) for time in times]
with open(path) as file:
    run = json.load(file)
run["scenarios"][scenario] = {
    "figures": {"n": len(times), "p50_ms": statistics.median(times)},
    "samples_ms": times,
}
with open(path, "w") as file:
    json.dump(run, file)
PYTHON
}

mkdir -p "$out"
results=()
for server in ${servers//,/ }; do
  if ! declare -F "${server}_prepare" >/dev/null; then
    echo "bench: no server is called $server" >&2
    exit 2
  fi
  dir=$(mktemp -d)
  chmod 711 "$dir"
  port=$(free_port)
  result=$out/$server.json
  "${server}_prepare"
  # Once to make its data and once more, so that what is called fresh is not the making.
  "${server}_start"
  wait_until_up
  stop_server
  "${server}_start"
  wait_until_up
  echo "bench: $server"
  # A scenario that fails is in the file; the others still count.
  "$load_bin" --base "http://127.0.0.1:$port" --pid "$measured_pids" --json "$result" "${driver_options[@]}" ||
    echo "bench: not every scenario could be measured" >&2
  if [ -z "$only" ]; then
    time_start_up "$server"
    add_start_up "$result" start-up "${times[@]}"
    if [ "$fill" = yes ] && [ "$server" != synapse ]; then
      "$load_bin" --base "http://127.0.0.1:$port" --pid "$measured_pids" --only fill "${driver_options[@]}"
      time_start_up "$server"
      add_start_up "$result" start-up-100k "${times[@]}"
    fi
  fi
  results+=("$result")
  finish
done

"$bench/compare" "${results[@]}"
