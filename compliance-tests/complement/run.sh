#!/usr/bin/env bash
# run.sh [PACKAGE...] [-run REGEX] [-single-server] [-list] [-out DIR] [-limit 2m] [-parallel N]
# Runs the black-box suite against $GUILDHALL_BIN; README.md beside this file says what it needs.
set -euo pipefail
export COMPLEMENT_CALLED_FROM=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")"
exec go run ./cmd/complement "$@"
