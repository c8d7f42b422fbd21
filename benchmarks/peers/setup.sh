#!/usr/bin/env bash
# Makes one virtual environment per requirements file, and the Node project, under BENCH_HOME.
#   ./setup.sh            everything          ./setup.sh saq streaq    only these requirement sets
#   ./setup.sh node       only BullMQ for Node
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"
home="${BENCH_HOME:-${TMPDIR:-/tmp}/bench}"
py="${BENCH_PYTHON:-python3}"
mkdir -p "$home/venv" "$home/node" "$home/work"
names=("$@")
[ ${#names[@]} -gt 0 ] || { for f in "$here"/requirements/*.txt; do names+=("$(basename "$f" .txt)"); done; names+=(ours node); }
for n in "${names[@]}"; do
  echo "== $n"
  if [ "$n" = node ]; then
    cp "$here/node/package.json" "$home/node/package.json"
    (cd "$home/node" && npm install --no-audit --no-fund --loglevel=error)
  else
    [ -x "$home/venv/$n/bin/python" ] || "$py" -m venv "$home/venv/$n"
    if [ "$n" = ours ]; then
      "$home/venv/$n/bin/pip" install -q -e "$here/../..[uvloop,hiredis,postgres]"
    else
      "$home/venv/$n/bin/pip" install -q -r "$here/requirements/$n.txt"
    fi
  fi
done
