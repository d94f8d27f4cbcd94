#!/usr/bin/env bash
# Two Guildhalls and a Synapse in one network: TLS by a test CA, on loopback. flows.py does in all directions what
# their users do with each other, and prints what did not work.
#
#   compliance-tests/synapse/run.sh [FLOW...]
#
# Environment: GUILDHALL_BIN (the server), SYNAPSE_VENV (a virtualenv with Synapse; default: in the user's cache, made
# if it is not there), and GUILDHALL_SYNAPSE_KEEP=1 keeps the directory with data and logs.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
guildhall_bin=$(realpath "${GUILDHALL_BIN:?names the server to test}")
keep=${GUILDHALL_SYNAPSE_KEEP:-}
# The server takes every variable that begins like this for a key of its configuration.
while read -r name; do export -n "$name"; done < <(compgen -A export GUILDHALL_)

# shellcheck source=install.sh
source "$here/install.sh"
# shellcheck source=tls.sh
source "$here/tls.sh"
install_synapse
python=$synapse_venv/bin/python

dir=$(mktemp -d)
finish() { if [ -n "$keep" ]; then echo "synapse: kept $dir" >&2; else rm -rf "$dir"; fi; }
trap finish EXIT

free_port() {
  python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}
# Addresses of their own, as server ACLs do not look at ports.
ours=127.0.0.1:$(free_port)
theirs=127.0.0.2:$(free_port)
guests=127.0.0.3:$(free_port)
make_certificates "$dir"

# guildhall_config NAME ADDRESS
guildhall_config() {
  cat >"$dir/$1.toml" <<TOML
[server]
name = "$2"

[[listeners]]
address = "$2"
tls_certificate_file = "$dir/server.pem"
tls_key_file = "$dir/server.key"

[data]
directory = "$dir/$1"

[registration]
mode = "open"
shared_secret = "flows"

[federation]
enabled = true

[logging]
level = "info"

[testing]
rate_limits_off = true
cheap_password_hashing = true
allow_private_addresses = true
extra_ca_file = "$dir/ca.pem"
TOML
}
guildhall_config guildhall "$ours"
guildhall_config guest "$guests"

cat >"$dir/homeserver.yaml" <<YAML
server_name: "$theirs"
pid_file: $dir/synapse.pid
listeners:
  - port: ${theirs##*:}
    bind_addresses: ["127.0.0.2"]
    type: http
    tls: true
    resources:
      - names: [client, federation]
tls_certificate_path: $dir/server.pem
tls_private_key_path: $dir/server.key
federation_custom_ca_list: [$dir/ca.pem]
database: { name: sqlite3, args: { database: $dir/synapse.db } }
log_config: $dir/log.yaml
media_store_path: $dir/synapse-media
signing_key_path: $dir/signing.key
macaroon_secret_key: test
form_secret: test
report_stats: false
enable_registration: true
enable_registration_without_verification: true
registration_shared_secret: flows
bcrypt_rounds: 4
trusted_key_servers: []
suppress_key_server_warning: true
ip_range_blacklist: []
federation_ip_range_blacklist: []
# A server that is down is found out at once and tried again soon.
federation:
  max_long_retries: 1
  max_long_retry_delay: 1s
  destination_min_retry_interval: 2s
  destination_retry_multiplier: 1
  destination_max_retry_interval: 2s
presence: { enabled: true }
allow_public_rooms_over_federation: true
# A first sync is answered as it is now, not as it was two minutes ago.
caches: { sync_response_cache_duration: 0s }
room_list_publication_rules: [{ action: allow }]
experimental_features: { msc3706_enabled: true }
rc_message: { per_second: 9999, burst_count: 9999 }
rc_registration: { per_second: 9999, burst_count: 9999 }
rc_login: { address: { per_second: 9999, burst_count: 9999 }, account: { per_second: 9999, burst_count: 9999 } }
rc_admin_redaction: { per_second: 9999, burst_count: 9999 }
rc_room_creation: { per_second: 9999, burst_count: 9999 }
rc_key_requests: { per_second: 9999, burst_count: 9999 }
rc_joins: { local: { per_second: 9999, burst_count: 9999 }, remote: { per_second: 9999, burst_count: 9999 } }
rc_joins_per_room: { per_second: 9999, burst_count: 9999 }
rc_invites: { per_room: { per_second: 9999, burst_count: 9999 }, per_user: { per_second: 9999, burst_count: 9999 } }
rc_federation: { window_size: 1000, sleep_limit: 9999, sleep_delay: 1, reject_limit: 9999, concurrent: 50 }
YAML
cat >"$dir/log.yaml" <<YAML
version: 1
formatters: { plain: { format: "%(asctime)s %(levelname)s %(name)s %(message)s" } }
handlers: { file: { class: logging.FileHandler, filename: $dir/synapse.log, formatter: plain } }
root: { level: INFO, handlers: [file] }
disable_existing_loggers: false
YAML
"$synapse_venv/bin/generate_signing_key" -o "$dir/signing.key"

cat >"$dir/servers.json" <<JSON
[
  {"name": "guildhall", "address": "$ours", "command": ["$guildhall_bin", "--config", "$dir/guildhall.toml"]},
  {"name": "guest", "address": "$guests", "command": ["$guildhall_bin", "--config", "$dir/guest.toml"]},
  {"name": "synapse", "address": "$theirs",
   "command": ["$python", "-m", "synapse.app.homeserver", "--config-path", "$dir/homeserver.yaml"]}
]
JSON

timeout 900 "$python" "$here/flows.py" "$dir/servers.json" "$@" || {
  status=$?
  keep=${keep:-$([ -n "${CI:-}" ] || echo 1)}
  exit "$status"
}
