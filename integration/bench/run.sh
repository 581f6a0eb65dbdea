#!/bin/bash
# Installs the peers, then measures; arguments go to the benchmark.
set -euo pipefail
cd "$(dirname "$0")/../.."
need=()
command -v dockerd >/dev/null || need+=(docker.io)
command -v dnsmasq >/dev/null || need+=(dnsmasq-base)
command -v iptables >/dev/null || need+=(iptables)
if [ ${#need[@]} -gt 0 ]; then
	apt-get update -qq
	DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${need[@]}" >/dev/null
fi
go build -o bin/bench ./integration/bench
bin/bench "$@"
echo
echo "catalog writes, three replicas with their logs on disk:"
go test -tags seccomp -run '^$' -bench 'Propose|Sync' -benchtime 2s ./cluster/catalog
