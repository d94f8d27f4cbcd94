# A test CA, and one certificate for the loopback addresses on which servers meet. Sourced.

# make_certificates DIR: ca.pem, server.pem and server.key in there.
make_certificates() {
  command -v openssl >/dev/null || { apt-get update && apt-get install -y --no-install-recommends openssl; }
  (
    cd "$1" || exit
    openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=test-ca -keyout ca.key -out ca.pem
    openssl req -newkey rsa:2048 -nodes -subj /CN=127.0.0.1 -keyout server.key -out server.csr
    openssl x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -out server.pem \
      -extfile <(echo subjectAltName=IP:127.0.0.1,IP:127.0.0.2,IP:127.0.0.3)
  ) 2>/dev/null
}
