#!/bin/sh
# Three machines that are network namespaces: a server, seven clients on one,
# and an eighth on another, which vanishes. Their network is slow, loses
# packets, and is cut for seconds. No message may be lost or come twice, and
# each call must return in time.
#   BUILD=build/default sh tests/interop/netns.sh
# NETNS_MESSAGES=100000 makes it longer than 20,000, and NETNS_CUT=60 cuts the
# network for 60 seconds each time instead of 5. What the clients have written
# goes to the file NETNS_LOG, and NETNS_SLACK is how many seconds a call may be
# late because the machine is busy. Needs root, ip and /dev/net/tun; the network
# is made by netns.c itself.
: "${BUILD:=build/default}" "${NETNS_MESSAGES:=20000}" "${NETNS_CUT:=5}"
title='netns: no message is lost or doubled in a network that fails'
program=$BUILD/interop/netns
tmp=$BUILD/netns.$$
me=conc$$

skip() { echo "skip $title: $1"; exit 0; }
[ -x "$program" ] || skip "$program is not built"
[ "$(id -u)" = 0 ] || skip 'only root can make a network'
[ -c /dev/net/tun ] || skip 'no /dev/net/tun'
command -v ip >/dev/null || skip 'no ip'
ip netns add ${me}s 2>/dev/null || skip 'no network namespaces here'

mkdir -p "$tmp"
wires=
finish() {
  exec 9>&-
  for ns in s a b; do
    ip netns pids $me$ns 2>/dev/null | xargs -r kill -9 2>/dev/null
    ip netns del $me$ns 2>/dev/null
  done
  [ -z "$wires" ] || kill $wires 2>/dev/null
  rm -rf "$tmp"
}
trap finish EXIT
trap 'exit 1' INT TERM

in_ns() { ns=$1; shift; ip netns exec $me$ns "$@"; }
# until_ready FILE: the program that writes there is ready.
until_ready() {
  tries=0
  until grep -q ready "$1" 2>/dev/null; do
    tries=$((tries + 1))
    [ $tries -lt 200 ] || return 1
    sleep 0.05
  done
}
# join NS NUMBER: connects a machine with the server's by a wire.
join() {
  ip netns add $me$1 || return 1
  "$program" wire ${me}s wire$2 $me$1 wire0 0.01 0.01 >"$tmp/wire.$1" &
  eval "wire_$1=$!"
  wires="$wires $!"
  until_ready "$tmp/wire.$1" || return 1
  in_ns s ip addr add 10.77.$2.1 peer 10.77.$2.2 dev wire$2 &&
    in_ns s ip link set dev wire$2 up &&
    in_ns $1 ip addr add 10.77.$2.2 peer 10.77.$2.1 dev wire0 &&
    in_ns $1 ip link set dev wire0 up
}
in_ns s ip link set dev lo up
join a 1 2>/dev/null && join b 2 2>/dev/null || skip 'no such devices here'

mkfifo "$tmp/in"
in_ns s "$program" server 0.0.0.0:7000 key <"$tmp/in" >"$tmp/server" 2>&1 &
exec 9>"$tmp/in"
until_ready "$tmp/server" || { echo "FAIL $title: no server"; exit 1; }

share=$((NETNS_MESSAGES / 8))
timeout=$((15 + NETNS_CUT)) # of a put: it outlasts a cut
pids=
for i in 0 1 2 3 4 5 6; do
  in_ns a "$program" client 10.77.1.1:7000 key $((i * share)) $share \
    "$tmp/log.$i" $timeout 9>&- &
  pids="$pids $!"
done
in_ns b "$program" client 10.77.2.1:7000 key $((7 * share)) $share \
  "$tmp/vanished" $timeout 9>&- &
vanishes=$!

# What happens to the network meanwhile.
cut() { # WIRE SECONDS
  kill -USR1 "$1"
  sleep "$2"
  kill -USR2 "$1"
}
sleep 3
cut "$wire_a" "$NETNS_CUT"
sleep 3
cut "$wire_b" "$NETNS_CUT"
sleep 3
kill -USR1 "$wire_b" # nothing of it is ever heard again
ip netns pids ${me}b | xargs -r kill -9
wait $vanishes 2>/dev/null
sleep 2
cut "$wire_a" "$NETNS_CUT"

failed=
for pid in $pids; do wait "$pid" || failed=1; done
exec 9>&-
sleep 1

cat "$tmp"/log.* "$tmp/vanished" >"$tmp/all"
[ -z "$NETNS_LOG" ] || cp "$tmp/all" "$NETNS_LOG"
sed -n 's/^P //p' "$tmp/all" | sort >"$tmp/put"
sed -n 's/^G //p' "$tmp/all" | sort >"$tmp/got"
sed -n 's/^G //p' "$tmp/vanished" | sort >"$tmp/gone"
sort -u "$tmp/got" >"$tmp/once"
comm -23 "$tmp/put" "$tmp/once" >"$tmp/lost"
# The last message that each task of the vanished one has got may come again.
uniq -d "$tmp/got" | comm -23 - "$tmp/gone" >"$tmp/doubled"
uniq -d "$tmp/got" | comm -12 - "$tmp/gone" >"$tmp/again"
lost=$(wc -l <"$tmp/lost") doubled=$(wc -l <"$tmp/doubled")
again=$(wc -l <"$tmp/again") put=$(wc -l <"$tmp/put")
late=$(grep -c '^L ' "$tmp/all") unknown=$(grep -c '^F ' "$tmp/all")
left=$(sed -n 's/^left //p' "$tmp/server")
over=$(sed -n 's/^M //p' "$tmp/all" | sort -n | tail -1)
what="$put put, $lost lost, $doubled doubled, $again of the vanished again, \
$late late, $over s over at most, $unknown failed, ${left:-?} left"
if [ -z "$failed" ] && [ "$lost" -eq 0 ] && [ "$doubled" -eq 0 ] &&
   [ "$again" -le 4 ] && [ "$late" -eq 0 ] && [ "$unknown" -eq 0 ] &&
   [ "$put" -ge $((7 * share)) ] && [ "${left:-1}" -eq 0 ]; then
  echo "ok   $title ($what)"
else
  echo "FAIL $title ($what)"
  failed=1
fi
grep '^[LEFe] ' "$tmp/all" | sort | uniq -c | head -20
[ -z "$failed" ]
