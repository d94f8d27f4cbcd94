#!/usr/bin/env bash
# A Guildhall and a Synapse in one network: TLS by a test CA, on loopback. flows.py does in both directions what
# users of the two do, and prints what did not work.
#
#   compliance-tests/synapse/run.sh
#
# Environment: GUILDHALL_BIN (the server), SYNAPSE_VENV (a virtualenv with Synapse; default: in the user's cache, made
# if it is not there), and GUILDHALL_SYNAPSE_KEEP=1 keeps the directory with data and logs.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
guildhall_bin=${GUILDHALL_BIN:?names the server to test}
keep=${GUILDHALL_SYNAPSE_KEEP:-}
# The server takes every variable that begins like this for a key of its configuration.
while read -r name; do export -n "$name"; done < <(compgen -A export GUILDHALL_)

# shellcheck source=install.sh
source "$here/install.sh"
install_synapse
command -v openssl >/dev/null || { apt-get update && apt-get install -y --no-install-recommends openssl; }

dir=$(mktemp -d)
pids=()
finish() {
  for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
  wait 2>/dev/null || true
  if [ -n "$keep" ]; then echo "synapse: kept $dir" >&2; else rm -rf "$dir"; fi
}
trap finish EXIT

free_port() {
  python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}
ours=127.0.0.1:$(free_port)
# Other addresses, as server ACLs do not look at ports.
theirs=127.0.0.2:$(free_port)

(
  cd "$dir"
  openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=test-ca -keyout ca.key -out ca.pem
  openssl req -newkey rsa:2048 -nodes -subj /CN=127.0.0.1 -keyout server.key -out server.csr
  openssl x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -out server.pem \
    -extfile <(echo subjectAltName=IP:127.0.0.1,IP:127.0.0.2)
) 2>/dev/null

cat >"$dir/guildhall.toml" <<TOML
[server]
name = "$ours"

[[listeners]]
address = "$ours"
tls_certificate_file = "$dir/server.pem"
tls_key_file = "$dir/server.key"

[data]
directory = "$dir/guildhall"

[registration]
mode = "open"

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
bcrypt_rounds: 4
trusted_key_servers: []
suppress_key_server_warning: true
ip_range_blacklist: []
federation_ip_range_blacklist: []
presence: { enabled: true }
allow_public_rooms_over_federation: true
# A first sync is answered as it is now, not as it was two minutes ago.
caches: { sync_response_cache_duration: 0s }
room_list_publication_rules: [{ action: allow }]
experimental_features: { msc3706_enabled: true }
rc_message: { per_second: 9999, burst_count: 9999 }
rc_registration: { per_second: 9999, burst_count: 9999 }
rc_login: { address: { per_second: 9999, burst_count: 9999 } }
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

"$guildhall_bin" --config "$dir/guildhall.toml" >"$dir/guildhall.log" 2>&1 &
pids+=($!)
"$synapse_venv/bin/python" -m synapse.app.homeserver --config-path "$dir/homeserver.yaml" --generate-keys >/dev/null 2>&1 || true
"$synapse_venv/bin/python" -m synapse.app.homeserver --config-path "$dir/homeserver.yaml" >"$dir/synapse.out" 2>&1 &
pids+=($!)

python3 "$here/flows.py" "https://$ours" "https://$theirs" || { status=$?; keep=${keep:-$([ -n "${CI:-}" ] || echo 1)}; exit "$status"; }
