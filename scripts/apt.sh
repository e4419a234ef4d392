# Sourced: `apt_install <package>...` installs with apt as root or by sudo, and fails without a word if it cannot.

as_root() {
    if [ "$(id -u)" -eq 0 ]; then "$@"; else sudo -n "$@"; fi
}

can_install() {
    command -v apt-get >/dev/null 2>&1 || return 1
    [ "$(id -u)" -eq 0 ] || { command -v sudo >/dev/null 2>&1 && sudo -n true >/dev/null 2>&1; }
}

apt_get() {
    as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=120 "$@"
}

# Two targets of one `make -j` may install at the same time, and apt's lists have a lock for which apt does not wait.
apt_install() {
    can_install || return 1
    echo "Installing with apt: $*"
    local log
    log="$(mktemp)"
    # The lists of a fresh machine are empty, those of an old one name packages that are gone: refresh, try again.
    if (
        flock 9
        apt_get install -y --no-install-recommends "$@" >"$log" 2>&1 ||
            { apt_get update >>"$log" 2>&1 && apt_get install -y --no-install-recommends "$@" >>"$log" 2>&1; }
    ) 9<"${BASH_SOURCE[0]}"; then
        rm -f "$log"
        echo "Installed with apt: $*"
        return 0
    fi
    tail -n 15 "$log" >&2
    rm -f "$log"
    return 1
}
