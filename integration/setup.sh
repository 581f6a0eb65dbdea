#!/bin/bash
# Installs what is missing of the system packages that building, testing and the
# demo need; with "bench", also the peers that benchmarks compare with. Does nothing,
# and needs no network, where all are there.
set -euo pipefail

# Daemons and file system tools are not in every user's path.
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
need=()
want() { # want PACKAGE COMMAND-OR-FILE
	command -v "$2" >/dev/null 2>&1 || [ -e "$2" ] || need+=("$1")
}
want gcc gcc
want libc6-dev /usr/include/stdlib.h
want pkg-config pkg-config
want libseccomp-dev /usr/include/seccomp.h
want busybox-static /bin/busybox
want iproute2 ip
want curl curl
want git git
want bup bup
want python3 python3
want haproxy haproxy
want dnsutils dig
want skopeo skopeo
want docker-registry docker-registry
want procps ps
want e2fsprogs mkfs.ext4
want pigz pigz
want isal igzip
if [ "${1:-}" = bench ]; then
	want docker.io dockerd
	want dnsmasq-base dnsmasq
	want iptables iptables
	want debootstrap debootstrap
	want util-linux nsenter
fi
[ -e /usr/lib/python3/dist-packages/docker ] || need+=(python3-docker)
if ! command -v docker >/dev/null 2>&1 && [ ! -x /usr/bin/docker ]; then
	# Newer releases split the client from the engine; only the client is wanted.
	if apt-cache show docker-cli >/dev/null 2>&1; then need+=(docker-cli); else need+=(docker.io); fi
fi

[ ${#need[@]} -eq 0 ] && exit 0

sudo=
[ "$(id -u)" = 0 ] || sudo=sudo
echo "installing: ${need[*]}"
export DEBIAN_FRONTEND=noninteractive
$sudo apt-get update -qq
# An engine or a proxy that comes with a package must not start by itself.
policy=/usr/sbin/policy-rc.d
made=
if [ ! -e $policy ]; then
	made=1
	printf '#!/bin/sh\nexit 101\n' | $sudo tee $policy >/dev/null
	$sudo chmod 755 $policy
fi
status=0
$sudo apt-get install -y -qq --no-install-recommends "${need[@]}" >/dev/null || status=$?
[ -z "$made" ] || $sudo rm -f $policy
exit $status
