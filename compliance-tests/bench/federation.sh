#!/usr/bin/env bash
# Runs the load driver between two servers on this machine that federate, and prints the table of figures and ratios.
# README.md beside this file says what is measured and how to read it.
#
#   bench/federation.sh [--pairs HOME-PEER,...] [--only SCENARIO,...] [--scale S] [--out DIR]
#
#   --pairs HOME-PEER,...  the rooms are on HOME, and PEER's users join and read; of synapse and guildhall
#                          (default: synapse-synapse, which the others are compared with, and the three others)
#   --only, --scale        handed to the driver: a part of the scenarios, smaller counts
#   --out DIR              where the JSON files go (default: bench in cargo's target directory)
#
# Environment: as for run.sh.
set -euo pipefail

bench=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=servers.sh
source "$bench/servers.sh"
# shellcheck source=../synapse/tls.sh
source "$bench/../synapse/tls.sh"

pairs=synapse-synapse,guildhall-guildhall,synapse-guildhall,guildhall-synapse
out=$target/bench
only=
driver_options=()
while [ $# -gt 0 ]; do
  case $1 in
    --pairs) pairs=$2 && shift ;;
    --only) only=$2 && shift ;;
    --scale) driver_options+=(--scale "$2") && shift ;;
    --out) out=$2 && shift ;;
    *)
      sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "$0" >&2
      exit 2
      ;;
  esac
  shift
done

raise_limits
if [[ $pairs == *guildhall* ]]; then build_missing yes; else build_missing no; fi

# Sled, as in the default configuration.
guildhall_prepare() { guildhall_prepare_on sled; }

work=
running=()
finish() {
  local pair
  for pair in "${running[@]}"; do
    server_pid=${pair%,*} postgres_pid=${pair#*,}
    stop_all
  done
  running=()
  if [ -n "$work" ]; then
    if [ -n "${GUILDHALL_BENCH_KEEP:-}" ]; then echo "bench: kept $work" >&2; else rm -rf "$work"; fi
  fi
  work=
}
trap finish EXIT
trap 'exit 130' INT TERM

# start_one KIND ADDRESS: a server with an empty store that is called by its address. Leaves $port, where clients
# reach it, and $measured_pids.
start_one() {
  postgres_pid=
  dir=$work/${2##*.}
  mkdir -m 711 "$dir"
  port=$(free_port)
  server_name=$2:$(free_port)
  "$1_prepare"
  running+=(",$postgres_pid")
  # Once to make its data and once more, so that what is called fresh is not the making.
  "$1_start"
  running[-1]=$server_pid,$postgres_pid
  wait_until_up
  stop_server
  "$1_start"
  running[-1]=$server_pid,$postgres_pid
  wait_until_up
}

mkdir -p "$out"
results=()
for pair in ${pairs//,/ }; do
  for kind in "${pair%-*}" "${pair#*-}"; do
    if [ "$kind" != synapse ] && [ "$kind" != guildhall ]; then
      echo "bench: no server is called $kind" >&2
      exit 2
    fi
  done
  work=$(mktemp -d)
  chmod 711 "$work"
  tls=$work
  make_certificates "$tls"
  start_one "${pair%-*}" 127.0.0.1
  home=(--base "http://127.0.0.1:$port" --pid "$measured_pids")
  start_one "${pair#*-}" 127.0.0.2
  peer=(--peer "http://127.0.0.1:$port" --peer-pid "$measured_pids")
  chosen=${only:-remote-deliver,remote-flood,remote-join}
  # It would take Synapse an hour to let 10,000 into three rooms.
  if [ -z "$only" ] && [ "${pair%-*}" = guildhall ]; then chosen+=,remote-join-10k; fi
  echo "bench: $pair"
  # A scenario that fails is in the file; the others still count.
  "$load_bin" "${home[@]}" "${peer[@]}" --json "$out/$pair.json" --only "$chosen" "${driver_options[@]}" ||
    echo "bench: not every scenario could be measured" >&2
  results+=("$out/$pair.json")
  finish
done

"$bench/compare" "${results[@]}"
