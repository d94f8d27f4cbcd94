#!/usr/bin/env bash
# run.sh [SUITE...]    suites: js-sdk nio browser matrix-sdk; without one, all four.
# Real clients against a homeserver; README.md beside this file says what each does and what the variables mean.
#
# Starts $GUILDHALL_BIN on a free port with a fresh data directory, or uses the server at $BASE_URL. Ends with the
# line `N passed, N failed`; the exit code is 0 if nothing failed that expected-failures.txt does not name.
set -euo pipefail
# Paths from outside are relative to where the caller is.
[[ -z ${GUILDHALL_BIN:-} ]] || GUILDHALL_BIN=$(realpath "$GUILDHALL_BIN")
[[ -z ${SERVER_LOG:-} ]] || SERVER_LOG=$(realpath "$SERVER_LOG")
if [[ -n ${SCREENSHOTS:-} ]]; then export SCREENSHOTS=$(realpath "$SCREENSHOTS"); fi
# The server takes every variable that begins like this for a key of its configuration.
while read -r name; do export -n "$name"; done < <(compgen -A export GUILDHALL_)
cd "$(dirname "${BASH_SOURCE[0]}")"
here=$PWD

work=$(mktemp -d)
server_pid=
finish() {
    if [[ -n $server_pid ]]; then
        kill "$server_pid" 2>/dev/null || true
        wait "$server_pid" 2>/dev/null || true
    fi
    rm -rf "$work"
}
trap finish EXIT

say() { printf '# %s\n' "$*"; }

# Installs with apt what has no command yet: need COMMAND PACKAGE.
need() {
    command -v "$1" >/dev/null && return
    say "installing $2"
    (apt-get update && apt-get install -y --no-install-recommends "$2") >"$work/apt.log" 2>&1 || {
        cat "$work/apt.log"
        return 1
    }
}

# Runs the rest of the line in $1 only if FILES (up to --) have changed since it last succeeded there.
when_changed() {
    local folder=$1 stamp=$1/.installed wanted
    shift
    local files=()
    while [[ $1 != -- ]]; do files+=("$1") && shift; done
    shift
    wanted=$(sha256sum "${files[@]}")
    [[ -f $stamp && $(<"$stamp") == "$wanted" ]] && return
    "$@" >"$work/install.log" 2>&1 || {
        cat "$work/install.log"
        return 1
    }
    mkdir -p "$folder"
    printf '%s\n' "$wanted" >"$stamp"
}

install_npm() { (cd "$1" && npm ci --no-progress); }

# The Node.js that js-sdk needs: the machine's own if it is new enough, else the one that npm installed beside it.
node_22() {
    local own
    own=$(node --version | sed 's/^v\([0-9]*\).*/\1/')
    if ((own >= 22)); then command -v node; else printf '%s\n' "$here/js-sdk/node_modules/node/bin/node"; fi
}

install_pip() {
    python3 -m venv "$here/nio/.venv"
    "$here/nio/.venv/bin/pip" install --disable-pip-version-check --no-deps -r "$here/nio/requirements.txt"
}

prepare() {
    say "installing what $1 needs"
    case $1 in
    js-sdk)
        need npm npm
        when_changed js-sdk/node_modules js-sdk/package-lock.json -- install_npm js-sdk
        ;;
    nio)
        python3 -c 'import ensurepip' 2>/dev/null || need ensurepip python3-venv
        when_changed nio/.venv nio/requirements.txt -- install_pip
        ;;
    browser)
        need npm npm
        need chromium chromium
        when_changed browser/node_modules browser/package-lock.json -- install_npm browser
        when_changed .bundle browser/{package-lock.json,build.js,globals.js,index.html,shell.tsx} -- \
            node browser/build.js "$here/.bundle"
        ;;
    matrix-sdk)
        (cd matrix-sdk && cargo build --quiet --locked)
        ;;
    esac
}

# Each check has a deadline of its own; the one here is for a suite that hangs outside of them.
run() {
    case $1 in
    js-sdk) timeout 900 "$(node_22)" js-sdk/run.js "$BASE_URL" ;;
    nio) timeout 900 nio/.venv/bin/python nio/run.py "$BASE_URL" ;;
    browser) CHROMIUM=$(command -v chromium) timeout 900 node browser/run.js "$BASE_URL" .bundle ;;
    matrix-sdk) (cd matrix-sdk && timeout 900 cargo run --quiet --locked -- "$BASE_URL") ;;
    esac
}

start_server() {
    local binary=${GUILDHALL_BIN:?set GUILDHALL_BIN to the server to start, or BASE_URL to a running one} port
    port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
    cat >"$work/guildhall.toml" <<TOML
[server]
name = "localhost"
[[listeners]]
address = "127.0.0.1:$port"
[data]
directory = "$work/data"
[registration]
mode = "open-loopback"
[rooms]
publish = "anyone"
[testing]
rate_limits_off = true
cheap_password_hashing = true
TOML
    (cd "$work" && exec "$binary" --config guildhall.toml) >"$work/server.log" 2>&1 &
    server_pid=$!
    BASE_URL=http://127.0.0.1:$port
    local deadline=$((SECONDS + 30))
    until curl --silent --fail --output "$work/versions" "$BASE_URL/_matrix/client/versions"; do
        if ! kill -0 "$server_pid" 2>/dev/null || ((SECONDS > deadline)); then
            say "the server did not start:"
            tail -n 50 "$work/server.log"
            exit 1
        fi
        sleep 0.1
    done
}

suites=("$@")
((${#suites[@]})) || suites=(js-sdk nio browser matrix-sdk)
for suite in "${suites[@]}"; do
    case $suite in
    js-sdk | nio | browser | matrix-sdk) ;;
    *) say "no such suite: $suite" && exit 2 ;;
    esac
done

# Everything is installed before anything runs, so that a build does not slow down a check.
for suite in "${suites[@]}"; do prepare "$suite"; done
need curl curl
[[ -n ${BASE_URL:-} ]] || start_server
export BASE_URL
: >"$work/results"
for suite in "${suites[@]}"; do
    say "$suite"
    run "$suite" 2>"$work/$suite.err" | tee -a "$work/results" || true
    if ! grep -q "^$suite: [0-9]* passed, [0-9]* failed$" "$work/results"; then
        tail -n 20 "$work/$suite.err"
        printf 'FAIL %s: the suite runs to its end: it stopped early\n' "$suite" | tee -a "$work/results"
    fi
done
if [[ -n ${SERVER_LOG:-} && -f $work/server.log ]]; then cp "$work/server.log" "$SERVER_LOG"; fi
python3 summary.py expected-failures.txt "$work/results" "${suites[@]}"
