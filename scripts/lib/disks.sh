# Small disks for tests: file systems in files, that can grow, be slow and be full. Needs base.sh and $WORK. Sourced, never run.
# Disk NAME is mounted at $WORK/NAME; it ends with the script that calls remove_disks.

declare -A DISKS=()
declare -A THROTTLES=()

# make_disk NAME MIB: with as much again that is taken at first; to enlarge a file system in use is not allowed everywhere.
make_disk() {
    local loop
    truncate -s "$((2 * $2))M" "$WORK/$1.img" && mkfs.ext4 -q -F -m 0 "$WORK/$1.img" && mkdir -p "$WORK/$1" || return 1
    loop=$(losetup --find --show "$WORK/$1.img") || return 1
    DISKS[$1]=$loop
    mount "$loop" "$WORK/$1" && fallocate -l "$2M" "$WORK/$1/taken"
}
# grow_disk NAME: to twice its size, while it is used.
grow_disk() { rm "$WORK/$1/taken"; }
disk_left() { df --output=avail -BM "$WORK/$1" | tail -n 1 | tr -d ' '; }
# disk_written NAME: so many bytes, since it was made.
disk_written() {
    local stat
    read -ra stat <"/sys/block/${DISKS[$1]#/dev/}/stat" && echo $((stat[6] * 512))
}
remove_disk() {
    speed_up "$1"
    # Whoever has used it may still be about to end.
    wait_until 10 umount "$WORK/$1" 2>/dev/null || umount -l "$WORK/$1" || return 1
    losetup --detach "${DISKS[$1]}" && rm "$WORK/$1.img" && unset "DISKS[$1]"
}
remove_disks() { local name; for name in "${!DISKS[@]}"; do remove_disk "$name"; done; }

# slow_down NAME PID BYTES: what a process reads and writes there goes so fast in a second. Sets SLOWED: how that is done.
slow_down() {
    local device group
    device=$(lsblk -ndo MAJ:MIN "${DISKS[$1]}" | tr -d ' ') || return 1
    if [ -e /sys/fs/cgroup/blkio/blkio.throttle.write_bps_device ]; then
        group=/sys/fs/cgroup/blkio/netfs-$$-$1
        mkdir -p "$group" && echo "$device $3" >"$group/blkio.throttle.write_bps_device" &&
            echo "$device $3" >"$group/blkio.throttle.read_bps_device" || return 1
    elif grep -qw io /sys/fs/cgroup/cgroup.controllers 2>/dev/null; then
        group=/sys/fs/cgroup/netfs-$$-$1
        echo +io >/sys/fs/cgroup/cgroup.subtree_control 2>/dev/null
        mkdir -p "$group" && echo "$device rbps=$3 wbps=$3" >"$group/io.max" || return 1
    else
        # No slow disk is to be had: a process that is stopped most of the time is a bad picture of one.
        (while kill -STOP "$2" && sleep 0.4 && kill -CONT "$2" && sleep 0.1; do :; done) 2>/dev/null </dev/null >/dev/null &
        THROTTLES[$1]=pid:$!:$2
        SLOWED="stopped four fifths of the time, since this kernel has no throttling"
        return 0
    fi
    THROTTLES[$1]=$group
    SLOWED="$(($3 >> 10)) KiB/s by ${group%/*}"
    echo "$2" >"$group/cgroup.procs"
}
# speed_up NAME: the end of it.
speed_up() {
    local throttle=${THROTTLES[$1]:-} pid
    [ -n "$throttle" ] || return 0
    unset "THROTTLES[$1]"
    case $throttle in
    pid:*)
        pid=${throttle#pid:}
        kill "${pid%:*}" 2>/dev/null
        kill -CONT "${pid#*:}" 2>/dev/null
        return 0
        ;;
    esac
    while read -r pid; do echo "$pid" >"${throttle%/*}/cgroup.procs" 2>/dev/null; done <"$throttle/cgroup.procs"
    wait_until 5 rmdir "$throttle" 2>/dev/null
}
