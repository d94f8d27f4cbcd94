# shellcheck shell=bash disable=SC2034,SC2154  # it shares its variables with run.sh
#
# Sourced by run.sh and federation.sh: how each server is installed, configured, started and stopped.
#
# A server NAME has two functions: NAME_prepare makes everything in $dir, NAME_start starts it on
# 127.0.0.1:$port and leaves its process in $server_pid and what counts as the server in $measured_pids.
# Everything listens on loopback or on a socket in $dir, and ends with stop_all.
#
# With $tls, a directory with a test CA and a certificate, the server federates: it is called $server_name, an
# address with a port, and listens there for other servers.

# The server takes every variable that begins like this for a key of its configuration.
while read -r name; do export -n "$name"; done < <(compgen -A export GUILDHALL_)

repository=$(cd "$bench/../.." && pwd)
target=${CARGO_TARGET_DIR:-$repository/target}
# shellcheck source=../synapse/install.sh
source "$bench/../synapse/install.sh"

postgres_pid=
server_pid=
measured_pids=
server_name=localhost
tls=

free_port() {
  python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}

wait_until_up() {
  local second
  for ((second = 0; second < 120; second++)); do
    if "$load_bin" --base "http://127.0.0.1:$port" --wait-until-up 1 2>/dev/null; then return; fi
    if ! kill -0 "$server_pid" 2>/dev/null; then break; fi
  done
  echo "bench: the server did not start. The end of its output:" >&2
  tail -n 20 "$dir/output.log" >&2
  return 1
}

# Builds in release mode what the environment does not name: $load_bin, and $guildhall_bin if the argument is yes.
build_missing() {
  local build=(cargo build --quiet --release --manifest-path "$repository/Cargo.toml")
  load_bin=${LOAD_BIN:-}
  if [ -z "$load_bin" ]; then
    "${build[@]}" --package load
    load_bin=$target/release/load
  fi
  guildhall_bin=${GUILDHALL_BIN:-}
  if [ -z "$guildhall_bin" ] && [ "$1" = yes ]; then
    "${build[@]}" --package homeserver --bin guildhall
    guildhall_bin=$target/release/guildhall
  fi
}

# Some thousand connections, in the driver and in the servers.
raise_limits() {
  ulimit -n "$(ulimit -Hn)"
  if [ "$(ulimit -n)" -lt 4096 ]; then
    echo "bench: at most $(ulimit -n) open files are allowed here, 4096 are needed" >&2
    return 1
  fi
}

# A process that leads a group of its own, in $server_pid.
start_in_background() {
  setsid "$@" >>"$dir/output.log" 2>&1 </dev/null &
  server_pid=$!
}

# stop PID SIGNAL: it has 60 s to end.
stop() {
  local waited=0
  kill -s "$2" "$1" 2>/dev/null || return 0
  while kill -0 "$1" 2>/dev/null; do
    if ((waited++ == 600)); then
      echo "bench: process $1 does not end, killing it" >&2
      kill -s KILL "$1"
    fi
    sleep 0.1
  done
}

stop_server() {
  if [ -n "$server_pid" ]; then stop "$server_pid" TERM; fi
  server_pid=
}

stop_all() {
  stop_server
  if [ -n "$postgres_pid" ]; then stop "$postgres_pid" INT; fi
  postgres_pid=
}

# --- Debian's PostgreSQL -------------------------------------------------------------------------

# PostgreSQL refuses to run as root.
as_postgres=()
if [ "$(id -u)" = 0 ]; then
  as_postgres=(setpriv --reuid=postgres --regid=postgres --init-groups --)
fi

postgres_bin() {
  # The newest, should there be several.
  local newest
  newest=$(printf '%s\n' /usr/lib/postgresql/*/bin/initdb | sort -V | tail -n 1)
  [ -x "$newest" ] && dirname "$newest"
}

install_postgres() {
  if postgres_bin >/dev/null; then return; fi
  if [ "$(id -u)" != 0 ]; then
    echo "bench: PostgreSQL is missing; as root: apt-get install postgresql" >&2
    return 1
  fi
  # Only the programs: no cluster of the system's own, which would run beside the one measured.
  mkdir -p /etc/postgresql-common
  if [ ! -e /etc/postgresql-common/createcluster.conf ]; then
    echo 'create_main_cluster = false' >/etc/postgresql-common/createcluster.conf
  fi
  apt-get update
  DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
    -o Dpkg::Options::=--force-confold postgresql
}

start_postgres() {
  local bin
  bin=$(postgres_bin)
  mkdir "$dir/postgres"
  if [ "$(id -u)" = 0 ]; then chown postgres: "$dir/postgres"; fi
  (
    cd "$dir/postgres" || exit
    "${as_postgres[@]}" "$bin/initdb" --pgdata="$dir/postgres/data" --auth=trust --username=postgres \
      --encoding=UTF8 --locale=C >/dev/null
  )
  # Acknowledgements are synced (fsync and synchronous_commit are on by default). The rest is what
  # guides for Synapse and PGTune advise for a small machine of its own.
  start_in_background "${as_postgres[@]}" "$bin/postgres" -D "$dir/postgres/data" \
    -c listen_addresses= -c unix_socket_directories="$dir/postgres" \
    -c shared_buffers=1GB -c effective_cache_size=3GB -c work_mem=16MB -c maintenance_work_mem=256MB \
    -c wal_buffers=16MB -c min_wal_size=1GB -c max_wal_size=4GB -c checkpoint_completion_target=0.9 \
    -c random_page_cost=1.1 -c effective_io_concurrency=200 -c max_connections=50
  postgres_pid=$server_pid server_pid=
  local waited=0
  until "$bin/pg_isready" --quiet --host="$dir/postgres" --username=postgres; do
    if ((waited++ == 300)); then
      echo "bench: PostgreSQL does not start, see $dir/output.log" >&2
      return 1
    fi
    sleep 0.1
  done
  "$bin/createdb" --host="$dir/postgres" --username=postgres synapse
}

# --- Synapse -------------------------------------------------------------------------------------

synapse_prepare() {
  install_postgres
  install_synapse
  start_postgres
  local limit for_servers=
  if [ -n "$tls" ]; then
    for_servers="  - {port: ${server_name##*:}, type: http, tls: true, bind_addresses: [${server_name%:*}], resources: [{names: [federation], compress: false}]}"
  fi
  cat >"$dir/homeserver.yaml" <<YAML
server_name: "$server_name"
pid_file: $dir/homeserver.pid
listeners:
  - {port: $port, type: http, tls: false, bind_addresses: [127.0.0.1], resources: [{names: [client, federation], compress: false}]}
$for_servers
database:
  name: psycopg2
  args: {user: postgres, dbname: synapse, host: $dir/postgres, cp_min: 5, cp_max: 10}
log_config: $dir/log.yaml
media_store_path: $dir/media
signing_key_path: $dir/signing.key
registration_shared_secret: load
macaroon_secret_key: load
form_secret: load
report_stats: false
trusted_key_servers: []
suppress_key_server_warning: true
enable_registration: true
enable_registration_without_verification: true
bcrypt_rounds: 4
url_preview_enabled: false
presence: {enabled: true}
rc_message: &no_limit {per_second: 1000000, burst_count: 1000000}
rc_login: {address: *no_limit, account: *no_limit, failed_attempts: *no_limit}
rc_joins: {local: *no_limit, remote: *no_limit}
rc_invites: {per_room: *no_limit, per_user: *no_limit, per_issuer: *no_limit}
rc_presence: {per_user: *no_limit}
YAML
  for limit in registration registration_token_validity admin_redaction joins_per_room 3pid_validation \
    third_party_invite media_create delayed_event_mgmt reports room_creation user_directory key_requests; do
    echo "rc_$limit: *no_limit" >>"$dir/homeserver.yaml"
  done
  if [ -n "$tls" ]; then
    cat >>"$dir/homeserver.yaml" <<YAML
tls_certificate_path: $tls/server.pem
tls_private_key_path: $tls/server.key
federation_custom_ca_list: [$tls/ca.pem]
ip_range_blacklist: []
federation_ip_range_blacklist: []
rc_federation: {window_size: 1000, sleep_limit: 1000000, sleep_delay: 1, reject_limit: 1000000, concurrent: 50}
YAML
  fi
  cat >"$dir/log.yaml" <<YAML
version: 1
handlers: {file: {class: logging.FileHandler, filename: $dir/synapse.log}}
root: {level: WARNING, handlers: [file]}
disable_existing_loggers: false
YAML
  "$synapse_venv/bin/generate_signing_key" -o "$dir/signing.key"
}

synapse_start() {
  start_in_background "$synapse_venv/bin/python" -m synapse.app.homeserver -c "$dir/homeserver.yaml"
  measured_pids=$server_pid,$postgres_pid
}

# --- Guildhall -----------------------------------------------------------------------------------

# guildhall_prepare_on ENGINE
guildhall_prepare_on() {
  cat >"$dir/guildhall.toml" <<TOML
[server]
name = "$server_name"

[[listeners]]
address = "127.0.0.1:$port"

[data]
directory = "$dir/data"
engine = "$1"

[registration]
mode = "open"

[media.url_previews]
enabled = false

[presence]
enabled = true

[logging]
level = "warn"

[testing]
rate_limits_off = true
cheap_password_hashing = true
TOML
  if [ -n "$tls" ]; then
    cat >>"$dir/guildhall.toml" <<TOML
allow_private_addresses = true
extra_ca_file = "$tls/ca.pem"

[federation]
enabled = true

[[listeners]]
address = "$server_name"
tls_certificate_file = "$tls/server.pem"
tls_key_file = "$tls/server.key"
TOML
  fi
}

guildhall_start() {
  start_in_background "$guildhall_bin" --config "$dir/guildhall.toml"
  measured_pids=$server_pid
}

guildhall-sled_prepare() { guildhall_prepare_on sled; }
guildhall-sled_start() { guildhall_start; }
guildhall-fjall_prepare() { guildhall_prepare_on fjall; }
guildhall-fjall_start() { guildhall_start; }
