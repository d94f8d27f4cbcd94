# Synapse from PyPI in a virtualenv in the user's cache, for whoever compares with it or talks to it. Sourced.

synapse_version=1.163.2
# The encryption of the clients, for flows.py.
vodozemac_version=0.10.0
synapse_venv=${SYNAPSE_VENV:-${XDG_CACHE_HOME:-$HOME/.cache}/guildhall-tests/synapse}

install_synapse() {
  if "$synapse_venv/bin/python" -c 'import synapse, vodozemac' 2>/dev/null; then return; fi
  # Debian keeps the module venv in a package of its own.
  if ! python3 -c 'import ensurepip' 2>/dev/null && [ "$(id -u)" = 0 ]; then
    apt-get update
    apt-get install -y --no-install-recommends python3-venv
  fi
  python3 -m venv "$synapse_venv"
  "$synapse_venv/bin/pip" install --quiet "matrix-synapse==$synapse_version" psycopg2-binary \
    "vodozemac==$vodozemac_version"
}
