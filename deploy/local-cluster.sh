#!/bin/bash
# local-cluster.sh start|stop|status: three Everpage nodes, a PostgreSQL primary and pgbench on this machine's loopback address, for trying things out.
# All data and logs are in one folder, $EVERPAGE_CLUSTER_DIR (default /tmp/everpage-cluster); stop ends everything and removes it.
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
dir=${EVERPAGE_CLUSTER_DIR:-/tmp/everpage-cluster}
everpage=${EVERPAGE:-$here/bin/everpage}
pgport=${EVERPAGE_CLUSTER_PGPORT:-5439}
scale=${EVERPAGE_CLUSTER_SCALE:-5}
nodes=(node1 node2 node3)
export EVERPAGE_SERVER=127.0.0.1:5430,127.0.0.1:5440,127.0.0.1:5450

say() { printf '\n\033[1m%s\033[0m\n' "$*"; }
port() { echo $((5430 + ($1 - 1) * 10 + $2)); } # of node $1: 0 pages, 1 raft, 2 gossip, 3 http

# as_server runs a command as the user that PostgreSQL runs as: it refuses root.
as_server() {
  if [ "$(id -u)" = 0 ]; then runuser -u "$pguser" -- "$@"; else "$@"; fi
}
pguser=$(id -un)
if [ "$(id -u)" = 0 ]; then
  pguser=nobody
  id postgres >/dev/null 2>&1 && pguser=postgres
fi

alive() { [ -f "$dir/$1.pid" ] && kill -0 "$(cat "$dir/$1.pid")" 2>/dev/null; }

# background NAME CMD…: starts a process that outlives this script; its log is NAME.log.
background() {
  local name=$1
  shift
  setsid nohup "$@" >>"$dir/$name.log" 2>&1 </dev/null &
  echo $! >"$dir/$name.pid"
}

# end NAME: asks a process to end, and waits for it.
end() {
  alive "$1" || return 0
  local pid
  pid=$(cat "$dir/$1.pid")
  kill "$pid" 2>/dev/null || true
  for _ in $(seq 300); do
    kill -0 "$pid" 2>/dev/null || return 0
    sleep 0.1
  done
  echo "$1 (process $pid) does not end; it is killed" >&2
  kill -9 "$pid"
}

# await WHAT SECONDS CMD…: repeats a command until it succeeds.
await() {
  local what=$1 seconds=$2
  shift 2
  for _ in $(seq $((seconds * 5))); do
    "$@" >/dev/null 2>&1 && return 0
    sleep 0.2
  done
  echo "not within $seconds s: $what; logs are in $dir" >&2
  return 1
}

spread() { # every node has its shards, and follows
  local list
  list=$("$everpage" node list -o json) || return 1
  [ "$(grep -c '"full_shards": 64' <<<"$list")" = 3 ] && [ "$(grep -c '"follow": "streaming"' <<<"$list")" = 3 ]
}

start() {
  [ -x "$everpage" ] || { echo "$everpage is not there: make build"; exit 1; }
  if [ -d "$dir" ]; then
    for n in primary "${nodes[@]}"; do
      if alive "$n"; then echo "it runs already, in $dir; $0 status shows it, $0 stop ends it"; exit 1; fi
    done
    rm -rf "$dir" # of a machine that went down
  fi
  bin=$("$here/deploy/postgres/fetch.sh" 15)
  mkdir -p "$dir"
  chmod 755 "$dir"
  trap 'echo "start failed; logs are in $dir, $0 stop cleans up" >&2' ERR

  say "A PostgreSQL 15 primary on port $pgport, with pgbench's tables"
  mkdir "$dir/primary"
  [ "$(id -u)" != 0 ] || chown "$pguser" "$dir/primary"
  chmod 700 "$dir/primary"
  (cd / && as_server "$bin/initdb" -D "$dir/primary" -U postgres --auth=trust --encoding=UTF8 --no-locale --data-checksums >"$dir/initdb.log")
  cat >>"$dir/primary/postgresql.conf" <<CONF
listen_addresses = '127.0.0.1'
port = $pgport
unix_socket_directories = '$dir/primary'
wal_level = replica
max_wal_senders = 20
max_replication_slots = 20
CONF
  touch "$dir/primary.log"
  [ "$(id -u)" != 0 ] || chown "$pguser" "$dir/primary.log"
  (cd / && background primary $([ "$(id -u)" != 0 ] || echo runuser -u "$pguser" --) "$bin/postgres" -D "$dir/primary")
  await "the primary answers" 60 "$bin/pg_isready" -q -h 127.0.0.1 -p "$pgport"
  pgbench=$(command -v pgbench || echo "$bin/pgbench")
  "$pgbench" -h 127.0.0.1 -p "$pgport" -U postgres -i -q -s "$scale" postgres >"$dir/pgbench-init.log" 2>&1

  say "Three nodes: pages on ports $(port 1 0), $(port 2 0) and $(port 3 0)"
  local join=()
  for i in 1 2 3; do
    background "node$i" "$everpage" serve --data "$dir/node$i" --node "node$i" --zone "zone$i" --listen "127.0.0.1:$(port $i 0)" --raft "127.0.0.1:$(port $i 1)" \
      --gossip "127.0.0.1:$(port $i 2)" --http "127.0.0.1:$(port $i 3)" "${join[@]}"
    await "node$i answers" 60 "$everpage" --server "127.0.0.1:$(port $i 0)" node list
    join=(--join "127.0.0.1:$(port 1 0)")
  done
  "$everpage" attach "postgresql://postgres@127.0.0.1:$pgport/postgres" --wait --quiet
  await "every node has its replicas" 180 spread

  say "pgbench, whose commits wait for two of the three nodes"
  "$bin/psql" -qX -h 127.0.0.1 -p "$pgport" -U postgres -c "alter system set synchronous_standby_names = 'ANY 2 (node1, node2, node3)'" -c "select pg_reload_conf()" postgres >/dev/null
  background pgbench "$pgbench" -h 127.0.0.1 -p "$pgport" -U postgres -n -c 2 -R 50 -T 86400 -P 60 postgres
  trap - ERR
  status
  cat <<END

Try:  export EVERPAGE_SERVER=$EVERPAGE_SERVER
      $everpage info
      $everpage shard list
      kill -9 \$(cat $dir/node2.pid); $everpage node list
End:  $0 stop
END
}

status() {
  if [ ! -d "$dir" ]; then
    echo "no cluster in $dir; $0 start makes one"
    return 3
  fi
  say "In $dir"
  for n in primary "${nodes[@]}" pgbench; do
    if alive "$n"; then printf '  %-8s runs, process %s, log %s\n' "$n" "$(cat "$dir/$n.pid")" "$dir/$n.log"; else printf '  %-8s does not run\n' "$n"; fi
  done
  echo
  "$everpage" node list
}

stop() {
  if [ ! -d "$dir" ]; then
    echo "no cluster in $dir"
    return 0
  fi
  for n in pgbench "${nodes[@]}"; do end "$n"; done
  if alive primary && [ -f "$dir/primary/postmaster.pid" ]; then # a fast stop; the process of the pid file may be runuser's
    kill -INT "$(head -1 "$dir/primary/postmaster.pid")" 2>/dev/null || true
    for _ in $(seq 300); do
      [ -f "$dir/primary/postmaster.pid" ] || break
      sleep 0.1
    done
  fi
  rm -rf "$dir"
  echo "ended, and $dir removed"
}

case ${1:-} in
  start) start ;;
  stop) stop ;;
  status) status ;;
  *) echo "usage: $0 start|stop|status" >&2; exit 2 ;;
esac
