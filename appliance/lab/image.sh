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
# Everything is written into the file at its offset: no loop device, no mount, no file system of the host's kernel. Built
# once, kept under ${ROOST_LAB:-/var/tmp/roost-lab} by a hash of this recipe and of what goes in.
set -euo pipefail
export PATH=$PATH:/usr/sbin:/sbin LC_ALL=C
# The same inputs give the same disk: no clock and no random identifier goes in (the inodes' change times excepted, which
# mke2fs takes from the files that it copies).
export SOURCE_DATE_EPOCH=1700000000 E2FSPROGS_FAKE_TIME=1700000000

cache=${ROOST_LAB:-/var/tmp/roost-lab}
bulk_mb=${1:-0}

# The disk, in MiB from its start: 1 MiB for GRUB's core (BIOS), an EFI system partition, the root file system, the bulk.
core_at=1 esp_at=2 esp_mb=4 root_at=6 root_mb=56 bulk_at=64
disk_mb=64
[ "$bulk_mb" -eq 0 ] || disk_mb=2048

say() { printf '%s\n' "$*" >&2; }

# A package of the archive, unpacked under the cache and not installed; prints the folder.
unpack() {
    local package=$1 version folder
    version=$(candidate "$package")
    [ -n "$version" ] || { say "apt knows no package $package; run: apt-get update"; return 1; }
    folder=$cache/unpacked/${package}_$version
    if [ ! -d "$folder" ]; then
        say "  fetching $package $version"
        local fetch
        fetch=$(mktemp -d "$cache/fetch.XXXXXX")
        # apt's own user may not write into our folder.
        (cd "$fetch" && apt-get -qq -o APT::Sandbox::User=root download "$package=$version" >/dev/null)
        dpkg -x "$fetch"/*.deb "$fetch/tree"
        mkdir -p "$cache/unpacked"
        mv "$fetch/tree" "$folder"
        rm -rf "$fetch"
    fi
    printf '%s\n' "$folder"
}

candidate() { apt-cache policy "$1" | sed -n 's/^  Candidate: //p' | grep -v '^(none)$' || true; }

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
    local kernel=$1 release=$2 tree=$work/root sum
    mkdir -p "$tree"/{bin,sbin,proc,sys,dev,run,tmp,etc,data,var,boot/grub}
    busybox_applets "$tree"
    cp "$kernel/boot/vmlinuz-$release" "$tree/boot/vmlinuz"
    build_initramfs "$kernel" "$release" "$tree/boot/initrd"
    pseudo_random 00112233445566778899aabbccddeeff 8 >"$tree/data/blob"
    sum=$(sha256sum <"$tree/data/blob" | cut -c1-64)
    printf '%s\n' "$sum" >"$tree/data/blob.sha256"
    cat >"$tree/sbin/init" <<'INIT'
#!/bin/sh
# The whole operating system: it proves that it reads and writes its own disk, says so, and gives a shell.
export PATH=/bin:/sbin PS1='lab# ' HOME=/
mount -t proc proc /proc 2>/dev/null; mount -t sysfs sysfs /sys 2>/dev/null; mount -t devtmpfs dev /dev 2>/dev/null
exec </dev/console >/dev/console 2>&1
dmesg -n 1
mount -o remount,rw /
mac=$(cat /sys/class/net/eth0/address)
boots=$(( $(cat /var/boots 2>/dev/null || echo 0) + 1 ))
echo $boots >/var/boots
echo "$boots $mac" >>/var/story
sync
data=BAD
[ "$(sha256sum </data/blob | cut -c1-64)" = "$(cat /data/blob.sha256)" ] && data=ok
fw=bios; [ -d /sys/firmware/efi ] && fw=efi
ibft=/sys/firmware/ibft
echo "ROOST-LAB-UP mac=$mac boots=$boots data=$data fw=$fw target=$(cat $ibft/target0/target-name) initiator=$(cat $ibft/initiator/initiator-name) uptime=$(cut -d' ' -f1 /proc/uptime)"
while :; do setsid cttyhack sh; done
INIT
    chmod 755 "$tree/sbin/init"
    cat >"$tree/boot/grub/grub.cfg" <<'GRUB'
serial --unit=0 --speed=115200
terminal_output serial
echo "GRUB: loading"
linux /boot/vmlinuz console=ttyS0,115200 net.ifnames=0 panic=-1 quiet mitigations=off nokaslr tsc=reliable no_timer_check
initrd /boot/initrd
boot
GRUB
    find "$tree" -exec touch -h -d @0 {} +
}

pseudo_random() { # KEY MIB: a stream that every build has alike
    # openssl's pipe breaks when head has enough; that is no failure.
    { openssl enc -aes-128-ctr -K "$1" -iv 00 -in /dev/zero 2>/dev/null || true; } | head -c "$2"M
}

build_disk() { # IMAGE GRUB_FOR_BIOS GRUB_FOR_EFI
    local image=$1 pc=$2 efi=$3
    local -r esp_lba=$((esp_at * 2048)) root_lba=$((root_at * 2048)) modules="part_gpt ext2 search search_label linux normal configfile serial terminal echo test boot"
    truncate -s "${disk_mb}M" "$image"
    {
        echo "label: gpt"
        echo "label-id: 524F4F53-5400-4C41-4200-000000000000"
        echo "start=$((core_at * 2048)), size=2048, type=21686148-6449-6E6F-744E-656564454649, name=core, uuid=524F4F53-5400-4C41-4200-000000000001"
        echo "start=$esp_lba, size=$((esp_mb * 2048)), type=C12A7328-F81F-11D2-BA4B-00A0C93EC93B, name=esp, uuid=524F4F53-5400-4C41-4200-000000000002"
        echo "start=$root_lba, size=$((root_mb * 2048)), type=0FC63DAF-8483-4772-8E79-3D69D8477DE4, name=root, uuid=524F4F53-5400-4C41-4200-000000000003"
        [ "$bulk_mb" -eq 0 ] ||
            echo "start=$((bulk_at * 2048)), size=$((bulk_mb * 2048)), type=0FC63DAF-8483-4772-8E79-3D69D8477DE4, name=bulk, uuid=524F4F53-5400-4C41-4200-000000000004"
    } | sfdisk -q "$image"

    # The inode tables are written now: a guest would otherwise do it at its first boot, on its own disk.
    mke2fs -q -F -t ext4 -b 4096 -m 0 -L roost-lab -U 524f4f53-5400-4c41-4200-000000000005 -J size=4 -d "$work/root" \
        -E "offset=$((root_lba * 512)),hash_seed=524f4f53-5400-4c41-4200-000000000006,lazy_itable_init=0,lazy_journal_init=0,nodiscard" \
        "$image" "${root_mb}M"

    # GRUB finds the root file system by its label, whichever way it was started.
    cat >"$work/early.cfg" <<'GRUB'
search --label --set=root roost-lab
set prefix=($root)/boot/grub
configfile /boot/grub/grub.cfg
GRUB
    # shellcheck disable=SC2086 # a list of words
    "${mkimage[@]}" -d "$pc" -O i386-pc -o "$work/core.img" -c "$work/early.cfg" -p '(hd0,gpt3)/boot/grub' biosdisk $modules
    # shellcheck disable=SC2086
    "${mkimage[@]}" -d "$efi" -O x86_64-efi -o "$work/BOOTX64.EFI" -c "$work/early.cfg" -p /boot/grub fat efi_gop all_video $modules
    python3 - "$image" "$pc/boot.img" "$work/core.img" "$core_at" <<'PYTHON'
# What grub-install would do, without a device: boot.img into the first 440 bytes (the partition table behind them stays),
# core.img into its partition, and in each the number of the sector where the next part begins.
import struct, sys
image, boot, core, at = sys.argv[1:]
sector = int(at) * 2048
boot = bytearray(open(boot, "rb").read()[:440])
core = bytearray(open(core, "rb").read())
assert len(core) <= 1 << 20, "GRUB's core does not fit its partition"
struct.pack_into("<Q", boot, 0x5C, sector)
boot[0x66:0x68] = b"\x90\x90"  # trust the BIOS's drive number, as on every hard disk
struct.pack_into("<Q", core, 512 - 12, sector + 1)
with open(image, "r+b") as f:
    f.write(boot)
    f.seek(sector * 512)
    f.write(core)
PYTHON
    # It warns that the file goes on behind the partition.
    mkfs.vfat -F 12 -S 512 -n ESP -i 524F4F53 --invariant --offset "$esp_lba" "$image" "$((esp_mb * 1024))" >"$work/vfat.log" 2>&1 ||
        { cat "$work/vfat.log" >&2; return 1; }
    export MTOOLS_SKIP_CHECK=1
    mmd -i "$image@@$((esp_lba * 512))" ::/EFI ::/EFI/BOOT
    mcopy -i "$image@@$((esp_lba * 512))" "$work/BOOTX64.EFI" ::/EFI/BOOT/BOOTX64.EFI
    # Zeros that were written become holes again, before the bulk is added.
    fallocate --dig-holes "$image" 2>/dev/null || true
    [ "$bulk_mb" -eq 0 ] ||
        pseudo_random ffeeddccbbaa99887766554433221100 "$bulk_mb" |
        dd of="$image" bs=1M seek="$bulk_at" iflag=fullblock conv=notrunc,sparse status=none
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
    cat "$0"
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
    pc=$(unpack grub-pc-bin)
    efi=$(unpack grub-efi-amd64-bin)
    grub=$(unpack grub-common)
    mkimage=("$grub/usr/bin/grub-mkimage")
    # It is linked against libdevmapper, which a system without GRUB may not have.
    [ -e /lib/x86_64-linux-gnu/libdevmapper.so.1.02.1 ] ||
        mkimage=(env "LD_LIBRARY_PATH=$(unpack libdevmapper1.02.1)/lib/x86_64-linux-gnu" "${mkimage[@]}")
    build_root "$kernel_tree" "$release"
    build_disk "$work/disk" "$pc/usr/lib/grub/i386-pc" "$efi/usr/lib/grub/x86_64-efi"
    mv "$work/disk" "$image"
fi
printf '%s\n' "$image"
