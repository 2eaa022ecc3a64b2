# shellcheck shell=bash
# need COMMAND PACKAGE: installs PACKAGE when COMMAND is missing, if this user may; says what to do if not.

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; elif command -v sudo >/dev/null; then sudo -n "$@"; else return 1; fi
}

apt_install() {
    command -v apt-get >/dev/null || return 1
    export DEBIAN_FRONTEND=noninteractive
    # Another apt may hold the lock for a moment.
    as_root apt-get -o DPkg::Lock::Timeout=120 update -qq && as_root apt-get -o DPkg::Lock::Timeout=120 install -y -qq "$@"
}

need() {
    command -v "$1" >/dev/null && return 0
    if apt_install "$2" >/dev/null 2>&1 && command -v "$1" >/dev/null; then return 0; fi
    echo "$1 is missing and could not be installed: run apt-get install $2" >&2
    exit 1
}
