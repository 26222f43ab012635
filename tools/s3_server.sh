# Sourced by tools/check: installs the S3 server that tests marked s3 start (Ceph's gateway, on Debian and Ubuntu).
# Where that cannot be done, says so, and those tests are skipped.

has_s3_server() { command -v radosgw && command -v ceph-mon && command -v ceph-osd; }

install_s3_server() {
  local as_root=""
  [ "$(id -u)" = 0 ] || as_root="sudo --non-interactive"
  timeout 120 $as_root apt-get update --quiet --quiet &&
    timeout 600 $as_root env DEBIAN_FRONTEND=noninteractive \
      apt-get install --yes --quiet --quiet --no-install-recommends radosgw ceph-mon ceph-osd
}

if ! has_s3_server >/dev/null; then
  echo "installing radosgw, ceph-mon and ceph-osd for the tests that need an S3 server (about a minute)" >&2
  install_s3_server >/dev/null 2>&1 || echo "could not install them; tests marked s3 will be skipped" >&2
fi
