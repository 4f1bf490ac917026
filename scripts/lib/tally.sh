# Counting what passed. Needs base.sh. Sourced, never run.

PASSED=0
FAILED=0
: "${NAME:=${0##*/}}"

pass() { PASSED=$((PASSED + ${1:-1})); }
fail() {
    FAILED=$((FAILED + 1))
    say "FAIL $*"
}

# An error of arithmetic breaks off a case and whatever has called it, and the script goes on: it must not count as nothing.
UNDER_WAY=
no_case_was_broken_off() {
    [ -z "$UNDER_WAY" ] || fail "$UNDER_WAY (broken off by an error of the shell)"
    UNDER_WAY=
}

# check WHAT COMMAND...: one case. The command's output is shown when it fails, and its last $CHECK_SHOW lines otherwise.
check() {
    local what=$1 output started=$SECONDS
    shift
    if [ -z "${CHECK_OUTPUT:-}" ]; then
        CHECK_OUTPUT=$(mktemp "${TMPDIR:-/tmp}/netfs-check.XXXXXX")
        on_exit "rm -f '$CHECK_OUTPUT'"
    fi
    output=$CHECK_OUTPUT
    no_case_was_broken_off
    UNDER_WAY=$what
    if "$@" >"$output" 2>&1 </dev/null; then
        pass
        say "ok   $what ($((SECONDS - started)) s)"
        [ -z "${CHECK_SHOW:-}" ] || tail -n "$CHECK_SHOW" "$output" | sed 's/^/     /'
    else
        fail "$what (status $?: $*)"
        tail -n "${CHECK_TAIL:-30}" "$output" | sed 's/^/     /'
    fi
    UNDER_WAY=
}

# finish: the last line, and the exit status that goes with it. No case at all is a failure too.
finish() {
    no_case_was_broken_off
    say "$NAME: $PASSED passed, $FAILED failed"
    [ "$FAILED" -eq 0 ] && [ "$PASSED" -gt 0 ]
    exit
}

# test_directory ARGUMENT: the directory under test, absolute. Sets DIR.
test_directory() {
    [ -n "${1:-}" ] || die "usage: $0 DIRECTORY   (on the file system to test)"
    DIR=$(cd "$1" 2>/dev/null && pwd) || die "no such directory: $1"
    mkdir -p "$DIR/$NAME" && DIR=$DIR/$NAME || die "cannot write in $1"
    on_exit "rm -rf --one-file-system -- '$DIR'"
}
