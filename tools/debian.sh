# Sourced by tools/check: installs programs that tests start, from Debian or Ubuntu, where they are missing.
# Where that cannot be done, says so, and those tests are skipped.

install_debian() {
  local as_root=""
  [ "$(id -u)" = 0 ] || as_root="sudo --non-interactive"
  timeout 120 $as_root apt-get update --quiet --quiet &&
    timeout 600 $as_root env DEBIAN_FRONTEND=noninteractive \
      apt-get install --yes --quiet --quiet --no-install-recommends "$@"
}

# need_debian TESTS PROGRAMS PACKAGES: each a text, the last two with blanks between names.
need_debian() {
  local program
  for program in $2; do
    command -v "$program" >/dev/null && continue
    echo "installing $3 for $1 (about a minute)" >&2
    install_debian $3 >/dev/null 2>&1 || echo "could not install them; $1 will be skipped" >&2
    return 0
  done
}

need_debian "tests marked s3, which need an S3 server" "radosgw ceph-mon ceph-osd" "radosgw ceph-mon ceph-osd"
need_debian "tests that open pages in a browser" "chromium" "chromium"
need_debian "the test that Prometheus collects a run's numbers" "prometheus" "prometheus"
