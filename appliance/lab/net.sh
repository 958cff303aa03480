# A private network of two namespaces without a way out, for the demo and the tests. To be sourced.
#
#   lab_up [TAPS]     makes it; sets LAB_SWITCH and LAB_SERVER, the names of the two namespaces
#   lab_down          ends every process in them, by its id, and removes them; also in those that a test added, whose names
#                     begin as these do
#   lab_bridge NAMESPACE LINK TAPS     a switch of its own in another namespace, into which LINK is plugged
#
#   LAB_SWITCH: bridge br0 with tap0.. for QEMU        LAB_SERVER: lan0, 10.77.0.1/24, for roost
#
# The names carry the id of this shell, so that two runs do not meet. The link between them is made inside the
# namespaces: no interface ever appears on the host.

lab_up() {
    local taps=${1:-4}
    if [ "$(id -u)" -ne 0 ]; then
        echo "The lab needs root: it makes network namespaces." >&2
        return 1
    fi
    if [ ! -c /dev/net/tun ]; then
        echo "The lab needs /dev/net/tun (modprobe tun)." >&2
        return 1
    fi
    LAB_SWITCH=roost-$$-switch
    LAB_SERVER=roost-$$-server
    ip netns add "$LAB_SWITCH"
    ip netns add "$LAB_SERVER"
    ip -n "$LAB_SWITCH" link add uplink type veth peer name lan0 netns "$LAB_SERVER"
    lab_bridge "$LAB_SWITCH" uplink "$taps"
    ip -n "$LAB_SWITCH" link set lo up
    ip -n "$LAB_SERVER" link set lo up
    ip -n "$LAB_SERVER" addr add 10.77.0.1/24 dev lan0
    ip -n "$LAB_SERVER" link set lan0 up
    export LAB_SWITCH LAB_SERVER
}

lab_bridge() {
    local namespace=$1 link=$2 taps=$3 i
    # No spanning tree and no forwarding delay: a machine's first DISCOVER must not be lost. No multicast snooping: nobody
    # here queries for members.
    ip -n "$namespace" link add br0 type bridge stp_state 0 forward_delay 0 mcast_snooping 0
    ip -n "$namespace" link set "$link" master br0 up
    for ((i = 0; i < taps; i++)); do
        ip -n "$namespace" tuntap add "tap$i" mode tap
        ip -n "$namespace" link set "tap$i" master br0 up
    done
    ip -n "$namespace" link set br0 up
}

# Every process in a namespace of this run was started by this run. Asked to end first, so that roost can close its files.
lab_end_processes() {
    local namespace=$1 signal pids tries
    for signal in TERM KILL; do
        for ((tries = 0; tries < 50; tries++)); do
            pids=$(ip netns pids "$namespace" 2>/dev/null || true)
            [ -n "$pids" ] || return 0
            # shellcheck disable=SC2086 # a list of ids
            [ "$tries" -ne 0 ] || kill "-$signal" $pids 2>/dev/null || true
            sleep 0.1
        done
    done
}

lab_down() {
    local namespace
    for namespace in $(ip netns list | cut -d ' ' -f 1); do
        case $namespace in roost-$$-*) ;; *) continue ;; esac
        lab_end_processes "$namespace"
        ip netns del "$namespace" 2>/dev/null || true
    done
}

# lab_run COMMAND...: runs it so that a signal to this shell ends it at once (bash runs no trap while it waits for a
# foreground child). Call it in a script whose EXIT trap cleans up.
lab_run() {
    local child status=0
    set -m # a process group of its own
    "$@" </dev/null &
    child=$!
    set +m
    # shellcheck disable=SC2064 # the id of now
    trap "kill -TERM -- -$child 2>/dev/null; wait $child; exit 130" INT TERM HUP
    wait "$child" || status=$?
    trap 'exit 130' INT TERM HUP
    return "$status"
}

# A folder for this run's files: in memory where at least $1 MiB are free there, else where temporary files go.
lab_folder() {
    local need=$1 free
    free=$(df --output=avail -m /dev/shm 2>/dev/null | tail -n 1 || echo 0)
    if [ "${free:-0}" -gt "$need" ]; then
        mktemp -d /dev/shm/roost.XXXXXX
    else
        mktemp -d "${TMPDIR:-/tmp}/roost.XXXXXX"
    fi
}
