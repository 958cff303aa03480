#!/usr/bin/env bash
# Builds a golden master with a real distribution on it, and prints its path: Debian 12 with systemd and open-iscsi.
#
# Where image.sh's tiny Linux has one session for its life, this one is a system as people run it: its initramfs logs in
# by the table that the firmware left (iBFT), iscsid takes the session over, and logs in again whenever it is lost. At
# multi-user it prints the marker of image.sh's Linux and gives a root shell on the serial console. The disk boots with
# BIOS and with UEFI.
#
# All of it is Debian's packages and a few files; docs/boot.md says which of them any Linux master needs.
# Built once, kept under ${ROOST_LAB:-/var/tmp/roost-lab} by a hash of this recipe.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=appliance/lab/disk.sh
. "$here/disk.sh"

cache=${ROOST_LAB:-/var/tmp/roost-lab}
suite=bookworm
label=roost-debian
disk_mb=1024 root_mb=1016 journal_mb=32
packages=systemd-sysv,udev,kmod,initramfs-tools,busybox,zstd,iproute2,e2fsprogs,linux-image-cloud-amd64,open-iscsi,fio

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
    local root=$1 name
    # A disk that does not answer is waited for: for a day, where the default gives up after two minutes and fails what
    # was written meanwhile.
    sed -i 's/^#\? *node.session.timeo.replacement_timeout *=.*/node.session.timeo.replacement_timeout = 86400/' \
        "$root/etc/iscsi/iscsid.conf"
    # From the start, not when somebody asks for it: the session must never be without its daemon.
    mkdir -p "$root/etc/systemd/system/sysinit.target.wants"
    ln -sf /lib/systemd/system/iscsid.service "$root/etc/systemd/system/sysinit.target.wants/"

    echo "LABEL=$label / ext4 noatime,errors=remount-ro 0 0" >"$root/etc/fstab"
    : >"$root/etc/machine-id"
    mkdir -p "$root/etc/systemd/journald.conf.d"
    printf '[Journal]\nStorage=volatile\n' >"$root/etc/systemd/journald.conf.d/lab.conf"
    # What only costs time on an emulated machine without a screen and without users.
    for name in dpkg-db-backup.timer fstrim.timer e2scrub_all.timer e2scrub_reap.service systemd-tmpfiles-clean.timer \
        getty.target getty-static.service serial-getty@ttyS0.service systemd-logind.service systemd-update-utmp.service \
        systemd-update-utmp-runlevel.service systemd-pstore.service systemd-random-seed.service \
        systemd-ask-password-console.path systemd-ask-password-wall.path proc-sys-fs-binfmt_misc.automount \
        {dev-hugepages,dev-mqueue,sys-kernel-{config,debug,tracing},sys-fs-fuse-connections}.mount \
        modprobe@{configfs,dm_mod,drm,efi_pstore,fuse,loop}.service; do
        ln -sf /dev/null "$root/etc/systemd/system/$name"
    done
    # Drivers for what is in the machine and not needed. Emulated, each takes up to seconds to load.
    for name in ata_piix ata_generic ahci sg evdev button serio_raw psmouse qemu_fw_cfg i2c_piix4 kvm kvm_amd powernow_k8 \
        aesni_intel ghash_clmulni_intel crct10dif_pclmul crc32_pclmul sha512_ssse3; do
        echo "blacklist $name"
    done >"$root/etc/modprobe.d/lab.conf"
    ln -sf /lib/systemd/system/multi-user.target "$root/etc/systemd/system/default.target"
    # What packages left to be done at the first boot has been done (systemd's ConditionNeedsUpdate).
    touch -r "$root/usr" "$root/etc/.updated" "$root/var/.updated"

    install_marker "$root"
    cat >"$root/sbin/lab-console" <<'CONSOLE'
#!/bin/sh
# From here the kernel's words are read with dmesg: on the console they would stand amid the shell's.
dmesg -n 1
# Up is who has a session that lasts: iscsid has taken it over once its timeout is the kernel's.
cd /sys/class/iscsi_session
until grep -qx 86400 */recovery_tmo && grep -qx LOGGED_IN */state; do sleep 0.2; done
cd /root
/sbin/lab-marker
while :; do sh -i; done
CONSOLE
    chmod 755 "$root/sbin/lab-console"
    cat >"$root/etc/systemd/system/lab.service" <<'UNIT'
[Unit]
Description=The lab's marker, then a shell
After=multi-user.target
DefaultDependencies=no

[Service]
Environment=HOME=/root TERM=dumb "PS1=lab# " PS2=
ExecStart=/sbin/lab-console
StandardInput=tty
StandardOutput=tty
StandardError=tty
TTYPath=/dev/ttyS0

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
