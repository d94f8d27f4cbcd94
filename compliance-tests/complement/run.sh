#!/usr/bin/env bash
# run.sh [PACKAGE...] [-run REGEX] [-single-server] [-list] [-out DIR] [-limit 2m] [-parallel N]
# Runs the black-box suite against $GUILDHALL_BIN; README.md beside this file says what it needs.
# Exit status: 0 as expected, 1 not as expected, 2 could not be run.
set -euo pipefail
export COMPLEMENT_CALLED_FROM=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")"
runner=${XDG_CACHE_HOME:-$HOME/.cache}/guildhall/complement
go build -o "$runner" ./cmd/complement
exec "$runner" "$@"
