# Shared by every script here: messages, and a clean-up that runs however the script ends. Sourced, never run.

export NO_COLOR=1 PYTHONDONTWRITEBYTECODE=1 CARGO_TERM_COLOR=never LC_ALL=C.UTF-8

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)

say() { printf '%s\n' "$*"; }
warn() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }
die() { warn "$*"; exit 1; }

require_root() {
    [ "$(id -u)" -eq 0 ] || die "must run as root (mounts, other users and device nodes need it)"
}

# Clean-ups run once, last registered first, when the script exits or is interrupted. A failing one does not stop the rest.
CLEANUPS=()
on_exit() { CLEANUPS+=("$*"); }
run_cleanups() {
    local status=$? i
    trap - EXIT
    trap '' INT TERM HUP
    for ((i = ${#CLEANUPS[@]} - 1; i >= 0; i--)); do
        eval "${CLEANUPS[i]}" || true
    done
    exit "$status"
}
trap run_cleanups EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
trap 'exit 129' HUP

# make_work VARIABLE NAME: a private directory that is removed at the end, outside the file system under test.
make_work() {
    local dir
    dir=$(mktemp -d "${TMPDIR:-/tmp}/netfs-$2.XXXXXX") || die "cannot make a work directory in ${TMPDIR:-/tmp}"
    # Dummy users must be able to pass through on their way to a mount inside.
    chmod 755 "$dir"
    printf -v "$1" '%s' "$dir"
    on_exit "rm -rf --one-file-system -- '$dir'"
}

# wait_until SECONDS COMMAND...: polls, and fails when the time is over.
wait_until() {
    local deadline=$((SECONDS + $1))
    shift
    until "$@"; do
        [ "$SECONDS" -lt "$deadline" ] || return 1
        sleep 0.05
    done
}

# suspend PID: SIGSTOP, and waits until every thread stands still: until the signal is taken they go on.
suspend() { kill -STOP "$1" && wait_until 5 stands_still "$1"; }
stands_still() { ! sed 's/.*) //' "/proc/$1"/task/*/stat 2>/dev/null | cut -c 1 | grep -qv T; }

# stop_pid PID [SECONDS [SIGNAL]]: asks a process to end, then insists. Status 1 if it had to be killed.
stop_pid() {
    local pid=$1 seconds=${2:-20} signal=${3:-TERM}
    kill -s "$signal" "$pid" 2>/dev/null || return 0
    wait_until "$seconds" pid_gone "$pid" && return 0
    kill -KILL "$pid" 2>/dev/null
    wait_until 5 pid_gone "$pid"
    return 1
}

# A zombie counts as gone: it only waits for its parent shell to collect it.
pid_gone() {
    local state
    state=$(sed -n 's/^State:[[:space:]]*\(.\).*/\1/p' "/proc/$1/status" 2>/dev/null) || return 0
    [ -z "$state" ] || [ "$state" = Z ]
}
