#!/usr/bin/env bash
# run.sh [--seed N] [--count N]: random rooms, judged and resolved by Synapse and by Guildhall, which must agree.
#
# Without a seed it is the date, so that every day sees other rooms. Environment: SYNAPSE_VENV, as in ../synapse.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
seed=$(date -u +%Y%m%d) count=1400
while (($#)); do
  case $1 in
  --seed) seed=$2 ;;
  --count) count=$2 ;;
  *) echo "unknown argument $1" >&2 && exit 2 ;;
  esac
  shift 2
done

# shellcheck source=../synapse/install.sh
source "$here/../synapse/install.sh"
install_synapse
cd "$here/../.."
cargo build --quiet -p federation --example oracle
replay="${CARGO_TARGET_DIR:-$PWD/target}/debug/examples/oracle"

workers=$(nproc)
echo "oracle: $count rooms of seed $seed, by $workers workers"
share() { echo $((count * $1 / workers)); }
pids=()
for ((worker = 0; worker < workers; worker++)); do
  first=$(share "$worker")
  "$synapse_venv/bin/python" "$here/generate.py" \
    --seed "$seed" --first "$first" --count $(($(share $((worker + 1))) - first)) | "$replay" &
  pids+=($!)
done
status=0
for pid in "${pids[@]}"; do wait "$pid" || status=1; done
exit "$status"
