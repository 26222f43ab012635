# Sourced by tools/quickstart and tools/check: makes .venv with the pinned versions and puts it on the PATH.
# Needs Python 3.11 or newer and nothing else. A venv that was made from the same pins is used as it is.

cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-python3}
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
  echo "error: $("$python" --version) is too old; raysrec needs Python 3.11 or newer (set PYTHON=/path/to/python)" >&2
  exit 2
}
stamp=.venv/installed-$(cat pyproject.toml constraints.txt | cksum | cut -d' ' -f1)
if [ ! -e "$stamp" ]; then
  echo "setting up .venv (one to three minutes)" >&2
  "$python" -m venv --clear .venv
  # pip would compile all modules on one core, one after the other; some that nobody imports cannot be.
  install=(.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-compile)
  # torch first: a later step that looked for it by itself could pick another build.
  "${install[@]}" "$(grep '^torch==' constraints.txt)"
  "${install[@]}" --constraint constraints.txt --editable '.[dev]'
  .venv/bin/python -m compileall -qq -j 0 .venv/lib || true
  touch "$stamp"
fi
export PATH="$PWD/.venv/bin:$PATH"
