# A cluster for tests: both servers in one process, and any number of clients with a mount point each. The first part also serves
# scripts that keep processes in another way, and needs nothing but $NETFS_BIN. The rest needs base.sh and mount.sh. Sourced, never run.

# free_ports: two UDP ports of this host that nobody uses now.
free_ports() {
    python3 - <<'PY'
import socket
a, b = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2))
for s in (a, b):
    s.bind(("127.0.0.1", 0))
print(a.getsockname()[1], b.getsockname()[1])
PY
}

# write_cluster DIRECTORY META_PORT DATA_PORT [ADDRESS]: an authority, certificates of a server and of a client named "client", and the
# servers' configuration, served.toml.
write_cluster() {
    local dir=$1 address=${4:-127.0.0.1}
    "$NETFS_BIN" pki init "$dir/pki" >/dev/null &&
        "$NETFS_BIN" pki issue "$dir/pki" "$dir/server" --server "cluster" >/dev/null &&
        "$NETFS_BIN" pki issue "$dir/pki" "$dir/client" --client client >/dev/null || return 1
    cat >"$dir/served.toml" <<TOML
[meta]
listen = "$address:$2"
dir = "$dir/state/meta"
[data]
listen = "$address:$3"
dir = "$dir/state/data"
[tls]
ca = "$dir/server/ca.pem"
cert = "$dir/server/cert.pem"
key = "$dir/server/key.pem"
TOML
}

# The cluster of the script that sources this. Clients are numbered from 1; client N is mounted at $CLUSTER/mntN.
CLUSTER=
SERVER=
SERVERS_PID=
CLIENT_PIDS=()

# set_served SECTION KEY VALUE: a setting of the servers, before they start. Fails if this build does not know it.
set_served() {
    "$NETFS_SERVED_BIN" config | awk -v s="[$1]" -v k="$2" '
        /^\[/ { here = $1 == s } here && $1 == k && $2 == "=" { found = 1 } END { exit !found }' || return 1
    if grep -qxF "[$1]" "$CLUSTER/served.toml"; then
        sed -i "s|^\[$1\]\$|&\n$2 = $3|" "$CLUSTER/served.toml"
    else
        printf '[%s]\n%s = %s\n' "$1" "$2" "$3" >>"$CLUSTER/served.toml"
    fi
}

# make_cluster DIRECTORY [ADDRESS]: prepares one in DIRECTORY, which is private to it. Clients reach it at ADDRESS, by default on the
# loopback interface only. Everything is ended when the script ends.
make_cluster() {
    local meta data address=${2:-127.0.0.1} listen=127.0.0.1
    [ -x "$NETFS_BIN" ] || die "no netfs at $NETFS_BIN; build it first (cargo build --release)"
    [ -x "$NETFS_SERVED_BIN" ] || die "no netfs-served at $NETFS_SERVED_BIN; build it first (cargo build --release)"
    mkdir -p "$1" && CLUSTER=$(cd "$1" && pwd) || die "cannot use $1"
    on_exit end_cluster
    read -r meta data < <(free_ports)
    SERVER=$address:$meta
    [ "$address" = 127.0.0.1 ] || listen=0.0.0.0
    write_cluster "$CLUSTER" "$meta" "$data" "$listen" || die "cannot make certificates in $CLUSTER"
}

mount_of() { printf '%s\n' "$CLUSTER/mnt$1"; }

start_servers() {
    "$NETFS_SERVED_BIN" all --config "$CLUSTER/served.toml" >>"$CLUSTER/servers.log" 2>&1 </dev/null &
    SERVERS_PID=$!
}
# kill_servers: as the death of the process does it, without a word to anybody.
kill_servers() {
    kill -KILL "$SERVERS_PID" || return 1
    wait "$SERVERS_PID" 2>/dev/null
    SERVERS_PID=
}
stop_servers() {
    stop_pid "$SERVERS_PID" 60 INT && wait "$SERVERS_PID" && SERVERS_PID=
}

# launch_client N [OPTION...]: starts client N and does not wait for it. With IN_NAMESPACE set, it lives in that network
# namespace, while its mount is seen everywhere.
launch_client() {
    local n=$1 inside=()
    shift
    [ -z "${IN_NAMESPACE:-}" ] || inside=(nsenter "--net=/run/netns/$IN_NAMESPACE")
    is_mounted "$(mount_of "$n")" || mkdir -p "$(mount_of "$n")"
    "${inside[@]}" "$NETFS_BIN" mount "$SERVER/main" "$(mount_of "$n")" --identity "$CLUSTER/client" --foreground "$@" \
        >>"$CLUSTER/client$n.log" 2>&1 </dev/null &
    CLIENT_PIDS[n]=$!
}
# await_client N: until it answers.
await_client() {
    wait_until "${NETFS_START_SECONDS:-60}" mount_up_or_dead "${CLIENT_PIDS[$1]}" "$(mount_of "$1")"
    mount_answers "$(mount_of "$1")" || { tail -n 20 "$CLUSTER/client$1.log" "$CLUSTER/servers.log"; return 1; }
}
# Whether the metadata server answers; a mount gives up after some seconds, and a server on a busy disk may take longer to begin.
server_answers() {
    local inside=()
    [ -z "${IN_NAMESPACE:-}" ] || inside=(nsenter "--net=/run/netns/$IN_NAMESPACE")
    "${inside[@]}" timeout -k 1 10 "$NETFS_BIN" status --server "$SERVER" --identity "$CLUSTER/client" >/dev/null 2>&1
}
# start_client N [OPTION...]
start_client() {
    local n=$1
    shift
    wait_until 60 server_answers
    launch_client "$n" "$@" && await_client "$n"
}
# start_clients COUNT: clients 1 to COUNT.
start_clients() {
    local n
    for ((n = 1; n <= $1; n++)); do start_client "$n" || return 1; done
}
# stop_client N: an orderly unmount; the client must end well.
stop_client() {
    local pid=${CLIENT_PIDS[$1]}
    umount "$(mount_of "$1")" && wait_until 60 pid_gone "$pid" && wait "$pid" && unset "CLIENT_PIDS[$1]"
}
# kill_client N: the process dies; its mount stays as a dead one until it is dropped.
kill_client() {
    local pid=${CLIENT_PIDS[$1]}
    kill -KILL "$pid" || return 1
    wait "$pid" 2>/dev/null
    unset "CLIENT_PIDS[$1]"
}

# check_cluster: stops everything in order and verifies what is on disk.
check_cluster() {
    local n
    for n in "${!CLIENT_PIDS[@]}"; do stop_client "$n" || return 1; done
    stop_servers || return 1
    "$NETFS_SERVED_BIN" check --config "$CLUSTER/served.toml"
}

# end_cluster: whatever state it is in. Mounts are found in the kernel's list: a look at one that hangs would hang, too.
end_cluster() {
    local pid mnt
    # A stopped process would not hear that it shall end.
    for pid in "${CLIENT_PIDS[@]}" $SERVERS_PID; do kill -CONT "$pid" 2>/dev/null; done
    while IFS= read -r mnt; do
        # Without servers, or without its daemon, it would wait for what never comes.
        [ -n "$SERVERS_PID" ] && timeout -k 1 5 umount "$mnt" 2>/dev/null && continue
        abort_fuse "$mnt"
        umount -l "$mnt" 2>/dev/null
    done < <(awk -v d="$CLUSTER/" 'index($5, d) == 1 { print $5 }' /proc/self/mountinfo | tac)
    for pid in "${CLIENT_PIDS[@]}"; do stop_pid "$pid" 10 TERM; done
    CLIENT_PIDS=()
    [ -z "$SERVERS_PID" ] || stop_pid "$SERVERS_PID" 10 INT
    SERVERS_PID=
}
