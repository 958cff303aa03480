#!/usr/bin/env bash
# Builds the golden master of the lab: a tiny, real Linux on a raw disk, and prints its path.
#
#   image.sh [BULK_MB]
#
# Debian's own kernel, busybox, iscsistart and GRUB. The disk boots with BIOS and with UEFI; its initramfs finds the
# iSCSI disk through the table that the firmware left (iBFT), mounts the root file system there, compares a data file
# with its SHA-256, counts the boot on the disk, prints
#
#   ROOST-LAB-UP mac=.. boots=N data=ok|BAD fw=bios|efi target=.. initiator=.. uptime=..
#
# and gives a root shell on the serial console. Without BULK_MB the disk has 64 MiB; with it 2 GiB, of which BULK_MB are
# pseudo-random bytes (the same in every build) in a partition of their own.
#
# Built once, kept under ${ROOST_LAB:-/var/tmp/roost-lab} by a hash of this recipe and of what goes in.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=appliance/lab/disk.sh
. "$here/disk.sh"

cache=${ROOST_LAB:-/var/tmp/roost-lab}
bulk_mb=${1:-0}

disk_mb=64
[ "$bulk_mb" -eq 0 ] || disk_mb=2048

# The newest kernel that the archive recommends for virtual machines; the meta package only names it.
kernel_package() { apt-cache depends linux-image-cloud-amd64 | sed -n 's/^ *Depends: //p' | head -n 1; }

busybox_applets() { # ROOT: busybox under each of its names
    local root=$1 applet
    cp /bin/busybox "$root/bin/busybox"
    for applet in $(/bin/busybox --list); do
        [ "$applet" = busybox ] || ln -sf busybox "$root/bin/$applet"
    done
}

build_initramfs() { # KERNEL_TREE RELEASE OUT
    local kernel=$1 release=$2 out=$3 tree=$work/initramfs module file
    mkdir -p "$tree"/{bin,sbin,proc,sys,dev,run,root,lib64,etc/iscsi,"lib/modules/$release"}
    busybox_applets "$tree"
    cp /usr/sbin/iscsistart "$tree/sbin/"
    ldd /usr/sbin/iscsistart | grep -o '/lib[^ ]*' | sort -u | while read -r file; do
        mkdir -p "$tree$(dirname "$file")"
        cp -L "$file" "$tree$file"
    done
    depmod -b "$kernel" "$release"
    for module in virtio_pci virtio_net sd_mod iscsi_tcp iscsi_ibft crc32c_generic; do
        modprobe -d "$kernel" -S "$release" --show-depends "$module" 2>/dev/null | sed -n 's/^insmod //p'
    done | sort -u | while read -r file; do
        file=${file%% *}
        mkdir -p "$tree$(dirname "${file#"$kernel"}")"
        cp "$file" "$tree${file#"$kernel"}"
    done
    cp "$kernel/lib/modules/$release"/modules.{builtin,builtin.modinfo,order} "$tree/lib/modules/$release/"
    depmod -b "$tree" "$release"
    cat >"$tree/init" <<'INIT'
#!/bin/sh
# From the firmware's table to the root file system on the iSCSI disk.
export PATH=/bin:/sbin
mount -t proc proc /proc; mount -t sysfs sysfs /sys; mount -t devtmpfs dev /dev
exec </dev/console >/dev/console 2>&1
uptime() { cut -d' ' -f1 /proc/uptime; }
fail() { echo "ROOST-LAB-FAIL $*"; dmesg | tail -n 30; exec sh; }
echo "ROOST-LAB-INIT uptime=$(uptime)"
for m in virtio_pci virtio_net sd_mod crc32c_generic iscsi_ibft iscsi_tcp; do modprobe $m 2>/dev/null; done
[ -d /sys/firmware/ibft/target0 ] || fail "the firmware left no iBFT"
n=0; while [ ! -e /sys/class/net/eth0 ] && [ $n -lt 500 ]; do usleep 20000; n=$((n+1)); done
ip link set lo up
iscsistart -N || fail "the address in the iBFT could not be set"
iscsistart -b || fail "the login to the target in the iBFT failed"
n=0; while [ ! -e /dev/sda3 ] && [ $n -lt 1000 ]; do usleep 20000; n=$((n+1)); done
[ -e /dev/sda3 ] || fail "the disk did not appear"
echo "ROOST-LAB-DISK uptime=$(uptime)"
mount -t ext4 /dev/sda3 /root || fail "the root file system does not mount"
exec switch_root /root /sbin/init
INIT
    chmod 755 "$tree/init"
    find "$tree" -exec touch -h -d @0 {} +
    (cd "$tree" && find . | sort | cpio -o -H newc --reproducible -R 0:0 --quiet | gzip -n -6) >"$out"
}

build_root() { # KERNEL_TREE RELEASE
    local kernel=$1 release=$2 tree=$work/root
    mkdir -p "$tree"/{bin,sbin,proc,sys,dev,run,tmp,etc,var,boot}
    busybox_applets "$tree"
    cp "$kernel/boot/vmlinuz-$release" "$tree/boot/vmlinuz"
    build_initramfs "$kernel" "$release" "$tree/boot/initrd"
    install_marker "$tree"
    cat >"$tree/sbin/init" <<'INIT'
#!/bin/sh
# The whole operating system: it says that it is up, and gives a shell.
export PATH=/bin:/sbin PS1='lab# ' HOME=/
mount -t proc proc /proc 2>/dev/null; mount -t sysfs sysfs /sys 2>/dev/null; mount -t devtmpfs dev /dev 2>/dev/null
exec </dev/console >/dev/console 2>&1
dmesg -n 1
mount -o remount,rw /
/sbin/lab-marker
while :; do setsid cttyhack sh; done
INIT
    chmod 755 "$tree/sbin/init"
    install_grub_menu "$tree" /boot/vmlinuz /boot/initrd ""
    find "$tree" -exec touch -h -d @0 {} +
}

mkdir -p "$cache"
# Two runs at once: the second waits and then finds the image.
exec 9>"$cache/lock"
flock 9

kernel=$(kernel_package)
if [ -z "$kernel" ] && [ "$(id -u)" -eq 0 ]; then
    apt-get -qq update
    kernel=$(kernel_package)
fi
[ -n "$kernel" ] || { say "apt does not know linux-image-cloud-amd64; run: apt-get update"; exit 1; }

key=$({
    cat "$0" "$here/disk.sh"
    echo "$kernel $(candidate "$kernel") $(candidate grub-common) $bulk_mb"
    dpkg-query -W busybox-static open-iscsi e2fsprogs
} | sha256sum | cut -c1-16)
image=$cache/master-$disk_mb-$key.raw
if [ ! -e "$image" ]; then
    say "  building the master disk ($disk_mb MiB) with $kernel"
    work=$(mktemp -d "$cache/build.XXXXXX")
    trap 'rm -rf "$work"' EXIT
    trap 'exit 130' INT TERM HUP
    kernel_tree=$(unpack "$kernel")
    release=${kernel#linux-image-}
    build_root "$kernel_tree" "$release"
    build_disk "$work/disk" "$work/root" roost-lab "$disk_mb" 56 4 "$bulk_mb"
    mv "$work/disk" "$image"
fi
printf '%s\n' "$image"
