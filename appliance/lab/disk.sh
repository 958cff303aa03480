# What the lab's golden masters have in common: packages that are unpacked and not installed, the marker of a system that
# came up, and a disk that boots with BIOS and with UEFI. To be sourced by what builds one; `cache` and `work` are folders
# of its own.
#
# Everything is written into the file at its offset: no loop device, no mount, no file system of the host's kernel.
export PATH=$PATH:/usr/sbin:/sbin LC_ALL=C
# The same inputs give the same disk: no clock and no random identifier goes in (the inodes' change times excepted, which
# mke2fs takes from the files that it copies).
export SOURCE_DATE_EPOCH=1700000000 E2FSPROGS_FAKE_TIME=1700000000

# The disk, in MiB from its start: 1 MiB for GRUB's core (BIOS), an EFI system partition, the root file system, the bulk.
core_at=1 esp_at=2 esp_mb=4 root_at=6

say() { printf '%s\n' "$*" >&2; }

candidate() { apt-cache policy "$1" | sed -n 's/^  Candidate: //p' | grep -v '^(none)$' || true; }

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

pseudo_random() { # KEY MIB: a stream that every build has alike
    # openssl's pipe breaks when head has enough; that is no failure.
    { openssl enc -aes-128-ctr -K "$1" -iv 00 -in /dev/zero 2>/dev/null || true; } | head -c "$2"M
}

# What a system runs when it is up, with a writable root: it proves that it reads and writes its own disk, and says so.
install_marker() { # ROOT
    local root=$1 sum
    mkdir -p "$root"/{data,sbin}
    pseudo_random 00112233445566778899aabbccddeeff 8 >"$root/data/blob"
    sum=$(sha256sum <"$root/data/blob" | cut -c1-64)
    printf '%s\n' "$sum" >"$root/data/blob.sha256"
    cat >"$root/sbin/lab-marker" <<'MARKER'
#!/bin/sh
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
MARKER
    chmod 755 "$root/sbin/lab-marker"
}

# What GRUB does: no menu, the kernel and its initramfs, everything on the serial console.
install_grub_menu() { # ROOT KERNEL INITRAMFS ARGUMENTS
    mkdir -p "$1/boot/grub"
    cat >"$1/boot/grub/grub.cfg" <<GRUB
serial --unit=0 --speed=115200
terminal_output serial
echo "GRUB: loading"
linux $2 console=ttyS0,115200 net.ifnames=0 panic=-1 quiet mitigations=off nokaslr tsc=reliable no_timer_check $4
initrd $3
boot
GRUB
}

build_disk() { # IMAGE ROOT LABEL DISK_MB ROOT_MB JOURNAL_MB [BULK_MB]
    local image=$1 root=$2 label=$3 disk_mb=$4 root_mb=$5 journal_mb=$6 bulk_mb=${7:-0}
    local -r esp_lba=$((esp_at * 2048)) root_lba=$((root_at * 2048)) bulk_at=$((root_at + root_mb + 2))
    local -r modules="part_gpt ext2 search search_label linux normal configfile serial terminal echo test boot"
    local pc efi grub mkimage
    pc=$(unpack grub-pc-bin)/usr/lib/grub/i386-pc
    efi=$(unpack grub-efi-amd64-bin)/usr/lib/grub/x86_64-efi
    grub=$(unpack grub-common)
    mkimage=("$grub/usr/bin/grub-mkimage")
    # It is linked against libdevmapper, which a system without GRUB may not have.
    [ -e /lib/x86_64-linux-gnu/libdevmapper.so.1.02.1 ] ||
        mkimage=(env "LD_LIBRARY_PATH=$(unpack libdevmapper1.02.1)/lib/x86_64-linux-gnu" "${mkimage[@]}")

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
    mke2fs -q -F -t ext4 -b 4096 -m 0 -L "$label" -U 524f4f53-5400-4c41-4200-000000000005 -J "size=$journal_mb" -d "$root" \
        -E "offset=$((root_lba * 512)),hash_seed=524f4f53-5400-4c41-4200-000000000006,lazy_itable_init=0,lazy_journal_init=0,nodiscard" \
        "$image" "${root_mb}M"

    # GRUB finds the root file system by its label, whichever way it was started.
    cat >"$work/early.cfg" <<GRUB
search --label --set=root $label
set prefix=(\$root)/boot/grub
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
