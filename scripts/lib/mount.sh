# Starting, stopping and getting rid of mounts. Needs base.sh. Sourced, never run.

# The daemon under test; scripts/test sets it to the release build.
: "${NETFS_BIN:=${CARGO_TARGET_DIR:-$ROOT/target}/release/netfs}"
: "${NETFS_SERVED_BIN:=$(dirname "$NETFS_BIN")/netfs-served}"

is_mounted() { awk -v m="$1" '$5 == m { found = 1 } END { exit !found }' /proc/self/mountinfo; }

# Answers, as opposed to being listed: a mount whose daemon hangs is listed too.
mount_answers() { is_mounted "$1" && timeout -k 1 5 stat "$1" >/dev/null 2>&1; }

# abort_fuse MOUNTPOINT: fails every waiting request of a FUSE mount, so that nothing stays stuck in it.
abort_fuse() {
    local minor
    minor=$(awk -v m="$1" '$5 == m { split($3, d, ":"); print d[2] }' /proc/self/mountinfo | tail -n 1)
    [ -n "$minor" ] || return 0
    [ -d /sys/fs/fuse/connections ] || return 0
    awk '$2 == "/sys/fs/fuse/connections"' /proc/mounts | grep -q . ||
        mount -t fusectl fusectl /sys/fs/fuse/connections 2>/dev/null || true
    if [ -w "/sys/fs/fuse/connections/$minor/abort" ]; then
        echo 1 >"/sys/fs/fuse/connections/$minor/abort" 2>/dev/null || true
    fi
}

# drop_mount MOUNTPOINT: unmounts, politely first, for certain at last.
drop_mount() {
    local try
    is_mounted "$1" || return 0
    for try in 1 2 3 4 5; do
        timeout -k 1 20 umount "$1" 2>/dev/null
        is_mounted "$1" || return 0
        sleep 0.2
    done
    abort_fuse "$1"
    umount -l "$1" 2>/dev/null
    ! is_mounted "$1"
}

# drop_mounts_below DIRECTORY: the same for everything mounted at or below it, innermost first.
drop_mounts_below() {
    local m
    awk -v d="$1" '$5 == d || index($5, d "/") == 1 { print $5 }' /proc/self/mountinfo | tac |
        while IFS= read -r m; do drop_mount "$m"; done
}

# start_netfs_dev STATE MOUNTPOINT LOG [OPTION...]: starts `netfs dev` and waits for the mount. Sets NETFS_PID.
start_netfs_dev() {
    local state=$1 mnt=$2 log=$3 seconds=${NETFS_START_SECONDS:-60}
    shift 3
    [ -x "$NETFS_BIN" ] || die "no netfs at $NETFS_BIN; build it first (cargo build --release)"
    mkdir -p "$state" "$mnt"
    "$NETFS_BIN" dev "$mnt" --dir "$state" "$@" >>"$log" 2>&1 </dev/null &
    NETFS_PID=$!
    wait_until "$seconds" mount_up_or_dead "$NETFS_PID" "$mnt"
    if ! is_mounted "$mnt" || ! mount_answers "$mnt"; then
        warn "netfs dev did not mount $mnt; the end of its log:"
        tail -n 20 "$log" >&2
        stop_pid "$NETFS_PID" 5
        drop_mount "$mnt"
        return 1
    fi
}

mount_up_or_dead() { mount_answers "$2" || pid_gone "$1"; }

# stop_netfs_dev PID MOUNTPOINT: a clean stop must end the process, with status 0, and take the mount with it.
stop_netfs_dev() {
    local pid=$1 mnt=$2 status=0
    stop_pid "$pid" 60 INT || status=1
    wait "$pid" 2>/dev/null || status=1
    if is_mounted "$mnt"; then
        status=1
        drop_mount "$mnt"
    fi
    return "$status"
}
