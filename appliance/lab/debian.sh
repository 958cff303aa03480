#!/usr/bin/env bash
# Builds a golden master with a real distribution on it, and prints its path: Debian 12 with systemd and open-iscsi.
#
# Where image.sh's tiny Linux has one session for its life, this one is a system as people run it: its initramfs logs in
# by the table that the firmware left (iBFT), iscsid takes the session over, and logs in again whenever it is lost. At
# multi-user it prints the marker of image.sh's Linux and gives a root shell on the serial console. The disk boots with
# BIOS and with UEFI.
#
# All of it is Debian's packages and a few files, which are here; docs/images.md says which of them a master needs.
# Built once, kept under ${ROOST_LAB:-/var/tmp/roost-lab} by a hash of this recipe.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=appliance/lab/disk.sh
. "$here/disk.sh"

cache=${ROOST_LAB:-/var/tmp/roost-lab}
suite=bookworm
label=roost-debian
disk_mb=1024 root_mb=1016 journal_mb=32
packages=systemd-sysv,udev,kmod,initramfs-tools,busybox,zstd,iproute2,e2fsprogs,linux-image-cloud-amd64,open-iscsi

# Where this host has Debian's packages of that suite from; Debian itself, where it has another one.
sources() {
    local lines
    # shellcheck disable=SC2016 # apt's variables
    lines=$(apt-get indextargets --format 'deb $(REPO_URI) $(CODENAME) $(COMPONENT)' 'Created-By: Packages' |
        grep -E "/debian(-security)?/ $suite(-updates|-security)? main$" | sort -u || true)
    printf '%s\n' "${lines:-deb http://deb.debian.org/debian $suite main}"
}

# What must be there before the packages are set up: the initramfs is then built once, and rightly.
settings_before_packages() { # ROOT
    mkdir -p "$1/etc/initramfs-tools/conf.d" "$1/etc/iscsi"
    # The initramfs logs in by the iBFT, whatever the kernel's command line says.
    echo 'ISCSI_AUTO=true' >"$1/etc/iscsi/iscsi.initramfs"
    # Which modules it has: those for this hardware. Any hardware's would take emulated firmware seconds to read.
    printf 'MODULES=list\n' >"$1/etc/initramfs-tools/conf.d/lab"
    printf 'virtio_pci\nvirtio_net\nsd_mod\n' >"$1/etc/initramfs-tools/modules"
    echo 'roost-lab' >"$1/etc/hostname"
}

settings() { # ROOT
    local root=$1 unit
    # A disk that does not answer is waited for: for a day, where the default gives up after two minutes and fails what
    # was written meanwhile.
    sed -i 's/^#\? *node.session.timeo.replacement_timeout *=.*/node.session.timeo.replacement_timeout = 86400/' \
        "$root/etc/iscsi/iscsid.conf"
    # One image, many machines: each is called what its firmware was told. iscsid logs in again by this name.
    ln -sf /run/initiatorname.iscsi "$root/etc/iscsi/initiatorname.iscsi"
    mkdir -p "$root/etc/systemd/system/iscsid.service.d"
    cat >"$root/etc/systemd/system/iscsid.service.d/name-of-the-firmware.conf" <<'UNIT'
[Service]
ExecStartPre=
ExecStartPre=/bin/sh -c 'echo "InitiatorName=$(cat /sys/firmware/ibft/initiator/initiator-name)" >/run/initiatorname.iscsi'
ExecStartPre=/lib/open-iscsi/startup-checks.sh
UNIT
    # From the start, not when somebody asks for it: the session must never be without its daemon.
    mkdir -p "$root/etc/systemd/system/sysinit.target.wants"
    ln -sf /lib/systemd/system/iscsid.service "$root/etc/systemd/system/sysinit.target.wants/"

    echo "LABEL=$label / ext4 noatime,errors=remount-ro 0 0" >"$root/etc/fstab"
    : >"$root/etc/machine-id"
    mkdir -p "$root/etc/systemd/journald.conf.d"
    printf '[Journal]\nStorage=volatile\n' >"$root/etc/systemd/journald.conf.d/lab.conf"
    # What only costs time on an emulated machine without a screen and without users.
    for unit in dpkg-db-backup.timer fstrim.timer e2scrub_all.timer e2scrub_reap.service systemd-tmpfiles-clean.timer \
        getty@tty1.service serial-getty@ttyS0.service systemd-logind.service systemd-update-utmp.service \
        systemd-update-utmp-runlevel.service systemd-pstore.service; do
        ln -sf /dev/null "$root/etc/systemd/system/$unit"
    done
    # What packages left to be done at the first boot has been done (systemd's ConditionNeedsUpdate).
    touch -r "$root/usr" "$root/etc/.updated" "$root/var/.updated"

    install_marker "$root"
    cat >"$root/etc/systemd/system/lab.service" <<'UNIT'
[Unit]
Description=The lab's marker, then a shell
After=multi-user.target
DefaultDependencies=no

[Service]
Environment=HOME=/root TERM=dumb "PS1=lab# "
WorkingDirectory=/root
# From here the kernel's words are read with dmesg: on the console they would stand amid the shell's.
ExecStartPre=/bin/dmesg -n 1
ExecStartPre=/sbin/lab-marker
ExecStart=/bin/sh -i
StandardInput=tty
StandardOutput=tty
StandardError=tty
TTYPath=/dev/ttyS0
Restart=always

[Install]
WantedBy=multi-user.target
UNIT
    mkdir -p "$root/etc/systemd/system/multi-user.target.wants"
    ln -sf ../lab.service "$root/etc/systemd/system/multi-user.target.wants/"

    rm -rf "$root"/usr/share/{doc,man,locale,info}/* "$root"/var/cache/* "$root"/var/log/*
}

build_root() {
    local root=$work/root
    sources >"$work/sources.list"
    if ! mmdebstrap --quiet --mode=root --variant=essential --include="$packages" \
        --essential-hook="$here/$(basename "$0") --before-packages \"\$1\"" \
        "$suite" "$root" "$work/sources.list" >"$work/mmdebstrap.log" 2>&1; then
        tail -n 30 "$work/mmdebstrap.log" >&2
        return 1
    fi
    settings "$root"
    install_grub_menu "$root" "$(in_boot vmlinuz)" "$(in_boot initrd.img)" "root=LABEL=$label ro"
}

in_boot() { # NAME: the path in the image
    local file=("$work/root/boot/$1"-*)
    printf '/boot/%s\n' "$(basename "${file[0]}")"
}

# mmdebstrap calls this script again in between.
if [ "${1:-}" = --before-packages ]; then
    settings_before_packages "$2"
    exit 0
fi

mkdir -p "$cache"
# Two runs at once: the second waits and then finds the image.
exec 9>"$cache/lock"
flock 9
key=$(cat "$0" "$here/disk.sh" | sha256sum | cut -c1-16)
image=$cache/debian-$disk_mb-$key.raw
if [ ! -e "$image" ]; then
    say "  building a Debian disk ($disk_mb MiB); that takes a minute or two"
    work=$(mktemp -d "$cache/build.XXXXXX")
    trap 'rm -rf --one-file-system "$work"' EXIT
    trap 'exit 130' INT TERM HUP
    build_root
    build_disk "$work/disk" "$work/root" "$label" "$disk_mb" "$root_mb" "$journal_mb"
    mv "$work/disk" "$image"
fi
printf '%s\n' "$image"
