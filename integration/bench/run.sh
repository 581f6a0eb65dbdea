#!/bin/bash
# Installs the peers, then measures; arguments go to the benchmark.
set -euo pipefail
cd "$(dirname "$0")/../.."
integration/setup.sh bench
export PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
go build -o bin/bench ./integration/bench
bin/bench "$@"
echo
echo "catalog writes, three replicas with their logs on disk:"
go test -tags seccomp -run '^$' -bench 'Propose|Sync' -benchtime 2s ./cluster/catalog
