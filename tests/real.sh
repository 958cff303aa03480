# For the suites that meet Roost from outside, as real clients do: a release build of roost, folders, and a private
# network, all of it gone again however the suite ends. To be sourced.
#
#   real_suite SET TAPS PROGRAM [ARGUMENT...]
#
# runs PROGRAM with --roost BINARY --fast DIR --disk DIR --switch NETNS --server NETNS. DIR fast is in memory where there is
# room (reads never wait there), DIR disk is on a disk (where they may): both ways through Roost's data path are met.
# ROOST_BIN names a binary to test in place of the one that cargo builds.

export PATH=$PATH:/usr/sbin:/sbin
lab=$(cd "$(dirname "${BASH_SOURCE[0]}")/../appliance/lab" && pwd)
# shellcheck source=appliance/lab/net.sh
. "$lab/net.sh"

real_clean_up() {
    local status=$?
    trap - EXIT INT TERM HUP
    lab_down
    rm -rf "${real_folders[@]}"
    exit "$status"
}

real_suite() {
    local set=$1 taps=$2 top fast disk roost
    shift 2
    top=$(cd "$lab/../.." && pwd)
    "$lab/packages.sh" "$set"
    if [ -n "${ROOST_BIN:-}" ]; then
        roost=$ROOST_BIN
    else
        lab_run cargo build --release --quiet --manifest-path "$top/Cargo.toml"
        roost=${CARGO_TARGET_DIR:-$top/target}/release/roost
    fi
    real_folders=()
    trap real_clean_up EXIT
    trap 'exit 130' INT TERM HUP
    fast=$(lab_folder 4096)
    real_folders+=("$fast")
    disk=$(mktemp -d "${TMPDIR:-/tmp}/roost.XXXXXX")
    real_folders+=("$disk")
    lab_up "$taps"
    lab_run "$@" --roost "$(realpath "$roost")" --fast "$fast" --disk "$disk" --switch "$LAB_SWITCH" --server "$LAB_SERVER"
}
