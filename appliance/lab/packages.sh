#!/usr/bin/env bash
# Installs the Debian packages that the demo and the tests need, and says which ones.
#
#   packages.sh SET...      SET is one of: demo boot disks interop iscsi unit bench fetch
#
# Nothing that is installed here may go on running: a package such as open-iscsi is wanted for one binary, not for its
# daemon. GRUB and the kernel of the machines under test are not installed at all; image.sh unpacks them.
set -euo pipefail

# QEMU and its firmware, what image.sh builds with, and what the lab's network is made of.
demo_packages=(
    qemu-system-x86 ovmf ipxe ipxe-qemu seabios
    mtools dosfstools fdisk e2fsprogs kmod cpio busybox-static open-iscsi openssl
    iproute2 procps python3
)
# The boots, two strangers that read the disks afterwards (7-Zip from the file, qemu-img over iSCSI), another DHCP server,
# and what debian.sh builds with.
boot_packages=(
    "${demo_packages[@]}" 7zip qemu-utils qemu-block-extra dnsmasq-base isc-dhcp-relay mmdebstrap
    qemu-system-arm qemu-efi-aarch64 u-boot-qemu
)
# Clients that nobody here wrote, and a compiler for the one that must log each acknowledgement (libiscsi).
interop_packages=(
    libiscsi-bin libiscsi-dev gcc libc6-dev qemu-utils qemu-block-extra 7zip openssl
    curl tftp-hpa atftp busybox-static udhcpc isc-dhcp-client dhcpcd-base isc-dhcp-relay dnsmasq-base tcpdump tshark
    nmap python3-scapy kea-admin iproute2 procps python3
)
# A conformance suite for the target.
iscsi_packages=(libiscsi-bin qemu-utils iproute2 procps python3)
# The target's peer, and a client for both; two DHCP servers, and perfdhcp (kea-admin).
bench_packages=(tgt gcc libc6-dev libiscsi-dev dnsmasq-base kea-dhcp4-server kea-admin util-linux iproute2 procps python3)
# The peers of boot files by TFTP and HTTP, clients for all, and what loses their packets.
fetch_packages=(tftpd-hpa dnsmasq-base nginx-light ipxe busybox-static atftp curl nftables iproute2 procps python3)
# Some of cargo's tests meet other programs too: readers of disks, and DHCP clients in a namespace.
unit_packages=(7zip qemu-utils openssl iproute2 udhcpc isc-dhcp-client)
# Readers of disks that nobody here wrote, and what unpacks the files that others made.
disks_packages=(7zip qemu-utils libvhdi-utils bzip2 gzip)

say() { printf '%s\n' "$*"; }

# Which of the named packages are not installed.
missing_packages() {
    local package state
    for package in "$@"; do
        state=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true)
        [ "$state" = installed ] || printf '%s\n' "$package"
    done
}

installed_packages() {
    dpkg-query -W -f '${db:Status-Status} ${Package}\n' | sed -n 's/^installed //p' | sort -u
}

# Units that belong to packages which were not there before: $1 is the list from before.
new_units() {
    local package
    comm -13 "$1" <(installed_packages) | while read -r package; do
        # Some packages bring a script of the old kind alone; systemctl disables that too, by its name.
        dpkg -L "$package" 2>/dev/null | grep -E '^(/usr)?/lib/systemd/system/[^/@]+\.(service|socket|timer)$|^/etc/init\.d/[^/]+$' || true
    done | xargs -r -n1 basename | sort -u
}

# One apt run. Debian asks policy-rc.d before it starts a service; ours says no (101), for as long as apt runs.
apt_install() {
    local policy=/usr/sbin/policy-rc.d ours="" status=0
    if [ ! -e "$policy" ]; then
        ours=1
        printf '#!/bin/sh\nexit 101\n' >"$policy"
        chmod 755 "$policy"
    fi
    DEBIAN_FRONTEND=noninteractive apt-get -y -q install --no-install-recommends "$@" || status=$?
    [ -z "$ours" ] || rm -f "$policy"
    return "$status"
}

# QEMU's parts must be of one version. Where qemu-utils is already here from backports, the archive's qemu-system-x86
# cannot be installed beside it: name the version of qemu-utils that belongs to it.
with_matching_qemu_utils() {
    local version
    version=$(apt-cache policy qemu-system-x86 | sed -n 's/^  Candidate: //p')
    apt-cache madison qemu-utils | awk -F'|' '{gsub(/ /, "", $2); print $2}' | grep -qxF "$version" || return 1
    printf 'qemu-utils=%s\n' "$version"
}

# install_packages PACKAGE...: installs those that are missing; nothing to do is the usual case and says nothing.
install_packages() {
    local wanted log before utils unit
    mapfile -t wanted < <(missing_packages "$@")
    [ "${#wanted[@]}" -gt 0 ] || return 0
    if [ "$(id -u)" -ne 0 ]; then
        say "These packages are needed and not installed: ${wanted[*]}"
        say "Run this as root, then try again:"
        say "  apt-get update && apt-get install --no-install-recommends ${wanted[*]}"
        return 1
    fi
    say "Installing ${#wanted[@]} Debian packages: ${wanted[*]}"
    log=$(mktemp)
    before=$(mktemp)
    installed_packages >"$before"
    if ! { apt-get -q update && apt_install "${wanted[@]}"; } >"$log" 2>&1; then
        if grep -q 'qemu-utils' "$log" && utils=$(with_matching_qemu_utils); then
            say "The installed qemu-utils does not fit the archive's QEMU; taking $utils instead."
            if ! apt_install --allow-downgrades "${wanted[@]}" "$utils" >"$log" 2>&1; then
                tail -n 20 "$log"
                rm -f "$log" "$before"
                return 1
            fi
        else
            tail -n 20 "$log"
            rm -f "$log" "$before"
            return 1
        fi
    fi
    if [ -d /run/systemd/system ]; then
        for unit in $(new_units "$before"); do
            systemctl disable --now "$unit" >/dev/null 2>&1 || true
        done
    elif command -v systemctl >/dev/null; then
        # Without systemd running (a container), what would start at its next boot is still only a link.
        for unit in $(new_units "$before"); do
            systemctl disable "$unit" >/dev/null 2>&1 || true
        done
    fi
    rm -f "$log" "$before"
}

install_sets() {
    local set packages=()
    for set in "$@"; do
        case $set in
            demo) packages+=("${demo_packages[@]}") ;;
            boot) packages+=("${boot_packages[@]}") ;;
            disks) packages+=("${disks_packages[@]}") ;;
            interop) packages+=("${interop_packages[@]}") ;;
            iscsi) packages+=("${iscsi_packages[@]}") ;;
            bench) packages+=("${bench_packages[@]}") ;;
            fetch) packages+=("${fetch_packages[@]}") ;;
            unit) packages+=("${unit_packages[@]}") ;;
            *) say "packages.sh: no set of packages is called '$set'" >&2; return 2 ;;
        esac
    done
    mapfile -t packages < <(printf '%s\n' "${packages[@]}" | sort -u)
    install_packages "${packages[@]}"
}

install_sets "$@"
