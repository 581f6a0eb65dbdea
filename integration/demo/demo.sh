#!/bin/bash
# Three hosts, one Docker engine: the whole story, with the plain docker client.
# Leaves the cluster running until Ctrl-C, then removes all of it.
# DEMO_ONCE=1 ends it after the story.
set -euo pipefail
cd "$(dirname "$0")/../.."

SHOAL=$PWD/bin/shoal
LAB=/run/shoal-demo
TMP=$(mktemp -d /tmp/shoal-demo.XXXXXX)
LB_PID=
export DOCKER_CONFIG=$TMP DOCKER_HOST=

bold=$(tput bold 2>/dev/null || true) plain=$(tput sgr0 2>/dev/null || true)
say() { printf '\n%s== %s%s\n' "$bold" "$*" "$plain"; }
show() { printf '%s$ %s%s\n' "$bold" "$*" "$plain"; }
on() { local n=$1; shift; DOCKER_HOST=unix://$LAB/node$n/shoal.sock "$@"; }
d() { # d N ARGS: the docker client, talking to node N
	local n=$1; shift
	show "DOCKER_HOST=node$n docker $*"
	on "$n" docker "$@"
}
s() { # s N ARGS: the shoal command, talking to node N
	local n=$1; shift
	show "shoal $*"
	SHOAL_HOST=unix://$LAB/node$n/shoal.sock "$SHOAL" "$@"
}
in_node() { local n=$1; shift; "$SHOAL" lab exec --dir $LAB "$n" -- "$@"; }
lab() { "$SHOAL" lab --dir $LAB "$@"; }

cleanup() {
	trap - EXIT INT TERM
	say "Cleaning up"
	[ -z "$LB_PID" ] || { kill "$LB_PID" 2>/dev/null || true; wait "$LB_PID" 2>/dev/null || true; }
	[ ! -s "$TMP/haproxy.pid" ] || kill "$(cat "$TMP/haproxy.pid")" 2>/dev/null || true
	lab down || true
	rm -rf "$TMP"
	echo "Nothing is left."
}
trap cleanup EXIT
trap 'exit 130' INT TERM

# until_ok SECONDS WHAT COMMAND...: wait for a condition
until_ok() {
	local limit=$1 what=$2 start=$SECONDS; shift 2
	until "$@" >/dev/null 2>&1; do
		if ((SECONDS - start > limit)); then echo "not within $limit s: $what" >&2; exit 1; fi
		read -rt 0.1 <> <(:) || true
	done
}

# ask N TIMES: requests through the load balancer; says who answered, fails if any request did
ask() {
	local i answer failed=0
	declare -A by=()
	for ((i = 0; i < $1; i++)); do
		if answer=$(in_node 1 curl -sS -m 2 -H 'Host: shop.example' http://127.0.0.1:8000/ 2>/dev/null) && [[ $answer == hello* ]]; then
			answer=${answer#hello from }; by[${answer%% *}]=$((${by[${answer%% *}]:-0} + 1))
		else
			failed=$((failed + 1))
		fi
	done
	printf '   %d requests, %d failed; answered by:' "$1" "$failed"
	for i in "${!by[@]}"; do printf ' %s×%s' "$i" "${by[$i]}"; done
	echo
	[ $failed = 0 ]
}

say "Three hosts on this machine: network namespaces with an address, an agent and a disk each"
[ ! -e $LAB/lab.json ] || lab down
lab up --nodes 3
export SHOAL_HOST=unix://$LAB/node1/shoal.sock
s 2 node ls

say "An image, loaded on node 1 only. There is no registry anywhere"
bin/mkimage -o "$TMP/web.tar" -ref web:1 -cmd /web -port 80 -env TEXT=hello -pad 32MiB /web=bin/webapp
d 1 load -i "$TMP/web.tar"
s 1 image where web:1

say "Three containers, asked of node 2. The scheduler spreads them; the layers follow, straight from host to host"
for i in 1 2 3; do
	d 2 run -d --name web$i --hostname web$i --label lb.host=shop.example --label lb.port=80 web:1
done
d 3 ps --format 'table {{.Names}}\t{{.Image}}\t{{.Status}}\t{{.Label "lb.host"}}'
s 3 image where web:1
show "the layers' journey, as the agents logged it"
grep -h 'blob fetched' $LAB/node*/agent.log | sed -E 's,^time=[^ ]+ level=[A-Z]+ ,  ,' | head -12 || true

say "Every host sees every container: logs, exec and inspect from anywhere"
d 1 logs web3
d 2 exec web1 /web -get http://web2/ | tail -1
d 3 inspect -f '{{.Name}} runs at {{.NetworkSettings.Networks.bridge.IPAddress}}' web1 web2 web3

say "Every host resolves every name, and every tag"
for n in 1 2 3; do
	show "node$n: dig +short web$n / shop.example's containers"
	in_node $n dig +short web$n
	in_node $n dig +short 'lb.host.shop.example.tag.shoal' | sort | tr '\n' ' ' || true
	in_node $n dig +short lb.port.80.tag.shoal | sort | tr '\n' ' '; echo
done
show "shoal resolve --tag lb.host=shop.example --port 80"
SHOAL_HOST=unix://$LAB/node3/shoal.sock "$SHOAL" resolve --tag lb.host=shop.example --port 80

say "HAProxy's configuration comes from the tags, checked and reloaded only when it changes"
CFG=$TMP/haproxy.cfg
RELOAD="$SHOAL lab exec --dir $LAB 1 -- haproxy -D -f $CFG -p $TMP/haproxy.pid -sf \$(cat $TMP/haproxy.pid 2>/dev/null) && cp $CFG $TMP/loaded.cfg"
show "shoal lb --out haproxy.cfg --check 'haproxy -c -f \"\$FILE\"' --reload 'haproxy -D -f haproxy.cfg -sf …'"
SHOAL_HOST=unix://$LAB/node1/shoal.sock "$SHOAL" lb --out "$CFG" --listen 127.0.0.1:8000 --check "haproxy -c -q -f \"\$FILE\"" --reload "$RELOAD" >"$TMP/lb.log" 2>&1 &
LB_PID=$!
until_ok 15 "the load balancer answers" in_node 1 curl -fsS -m 2 -H 'Host: shop.example' http://127.0.0.1:8000/
grep -A4 '^backend' "$CFG" | head -12
ask 30

say "A fourth container starts: it is in the load balancer before you can look"
d 1 run -d --name web4 --hostname web4 --label lb.host=shop.example --label lb.port=80 web:1
until_ok 10 "web4 is a back end" grep -q web4 "$TMP/loaded.cfg"
ask 30
say "One stops"
d 3 stop web1
until_ok 10 "web1 is no back end" sh -c "! grep -q web1 $TMP/loaded.cfg"
ask 30

say "kill -9 of node 3's agent: the others notice, its back ends are withdrawn, its containers run on"
show "shoal lab kill 3"
lab kill 3
start=$SECONDS
ask 40 || true
until_ok 20 "node 3 is seen as down" sh -c "SHOAL_HOST=unix://$LAB/node1/shoal.sock $SHOAL node ls | grep node3 | grep -q down"
echo "   noticed after $((SECONDS - start)) s"
ask 30
d 1 ps -a --format 'table {{.Names}}\t{{.Status}}'
show "shoal lab start 3"
lab start 3
until_ok 20 "node 3 is back" sh -c "SHOAL_HOST=unix://$LAB/node1/shoal.sock $SHOAL node ls | grep node3 | grep -q ready"
d 3 ps --format 'table {{.Names}}\t{{.Status}}'
ask 30

say "That was it. The cluster is yours:"
cat <<TXT

  export DOCKER_HOST=unix://$LAB/node1/shoal.sock
  docker ps
  docker run --rm web:1 /web -get http://web2/
  docker run -d --name mine -e constraint:node==node3 -p 8080:80 web:1
  $SHOAL lab exec --dir $LAB 2 -- curl -s http://127.0.0.1:8080/
  $SHOAL watch --tag lb.host -H \$DOCKER_HOST
  $SHOAL lab status --dir $LAB

TXT
if [ -n "${DEMO_ONCE:-}" ] || [ ! -t 0 ]; then exit 0; fi
echo "Ctrl-C ends it and cleans up."
while :; do read -r || sleep infinity; done
