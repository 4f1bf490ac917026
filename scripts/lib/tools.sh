# Installing what the tests need, once. Needs base.sh. Sourced, never run.

: "${NETFS_TOOLS:=${XDG_CACHE_HOME:-$HOME/.cache}/netfs/tools}"

# apt_install PACKAGE...: asks apt only for what dpkg does not have, and keeps services from starting.
apt_install() {
    local package missing=()
    for package in "$@"; do
        dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null | grep -qx installed || missing+=("$package")
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    command -v apt-get >/dev/null || die "please install: ${missing[*]} (no apt-get here to do it)"
    require_root
    say "installing ${missing[*]}"
    local policy=/usr/sbin/policy-rc.d ours=0 status=0
    if [ ! -e "$policy" ]; then
        printf '#!/bin/sh\nexit 101\n' >"$policy" && chmod 755 "$policy" && ours=1
        on_exit "rm -f '$policy'"
    fi
    export DEBIAN_FRONTEND=noninteractive NEEDRESTART_MODE=a
    apt-get -qq -o DPkg::Lock::Timeout=300 update &&
        apt-get -qq -y -o DPkg::Lock::Timeout=300 --no-install-recommends install "${missing[@]}" >/dev/null || status=$?
    [ "$ours" = 0 ] || rm -f "$policy"
    return "$status"
}

# crate_tool NAME VERSION: a published program, built once into $NETFS_TOOLS. Sets TOOL to its path.
crate_tool() {
    local root=$NETFS_TOOLS/$1-$2
    TOOL=$root/bin/$1
    [ ! -x "$TOOL" ] || return 0
    say "building $1 $2 into $root"
    # From / so that neither this workspace's configuration nor its target directory is used.
    (cd / && CARGO_TARGET_DIR=$NETFS_TOOLS/target cargo ${NETFS_TOOLS_TOOLCHAIN:+"+$NETFS_TOOLS_TOOLCHAIN"} \
        install --quiet --locked --root "$root" "$1@$2")
}

# dummy_user NAME: a user with a group of the same name, made if it is not there.
dummy_user() {
    if ! getent group "$1" >/dev/null; then groupadd --system "$1" || return 1; fi
    if ! getent passwd "$1" >/dev/null; then
        useradd --system --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin --gid "$1" "$1" || return 1
    fi
}
