#!/usr/bin/env bash
# run.sh [--quick]: everything that must pass. Installs what it needs.
#
# --quick leaves out the real clients and Synapse, which need apt, pip and npm and take most of the time.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

step() { printf '\n# %s\n' "$*"; }

step "what building needs"
if ! command -v cc >/dev/null || ! command -v curl >/dev/null || ! command -v xfs_io >/dev/null; then
    apt-get update && apt-get install -y --no-install-recommends build-essential curl xfsprogs
fi
rustup component add rustfmt clippy 2>/dev/null || true

step "format"
cargo fmt --all -- --check

step "lints"
cargo clippy --workspace --all-targets -- -D warnings

step "tests"
cargo test --workspace

for engine in sled fjall; do
    step "tests of the client-server API on $engine"
    COMPLIANCE_ENGINE=$engine cargo test -p compliance-tests --test client_server
done

step "documentation"
RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --document-private-items --quiet

[[ ${1-} != --quick ]] || exit 0

step "authorisation and state resolution, against Synapse's"
bash compliance-tests/oracle/run.sh

step "real clients"
# As above, or other features of the same crates would be built again.
cargo build --workspace --bin guildhall
GUILDHALL_BIN="${CARGO_TARGET_DIR:-$PWD/target}/debug/guildhall" bash compliance-tests/clients/run.sh

step "a real Synapse"
GUILDHALL_BIN="${CARGO_TARGET_DIR:-$PWD/target}/debug/guildhall" bash compliance-tests/synapse/run.sh
