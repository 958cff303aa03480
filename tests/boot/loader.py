"""A program for ARM64 UEFI that says one line: a loader for tests, since Debian 12 has no iPXE for this processor.

Its line stands at the end of the file, behind padding of several hundred TFTP blocks: whoever says it was fetched whole.
"""

import struct

LINE = "ROOST-LAB-LOADER ran"

SECTION = 0x1000
ALIGNMENT = 0x200
# As large as the loaders that machines fetch in earnest.
SIZE = 0x40000

# With x1 = the system table (UEFI 2.10 §4.3): its ConOut is at 64, and in that OutputString(this, text) at 8.
INSTRUCTIONS = [
    0xA9BF7BFD,  # stp x29, x30, [sp, #-16]!
    0xF9402020,  # ldr x0, [x1, #64]
    0xF9400408,  # ldr x8, [x0, #8]
    0x90000001,  # adrp x1, the text's page
    0xD63F0100,  # blr x8
    0xD2800000,  # mov x0, #0
    0xA8C17BFD,  # ldp x29, x30, [sp], #16
    0xD65F03C0,  # ret
]
ADRP = 3


def arm64_program():
    """The program: a PE32+ image (Microsoft PE format) of one section."""
    text = f"{LINE}\r\n\0".encode("utf-16le")
    # The text begins the last page; adrp counts pages from that of the code, the first one.
    pages = SIZE // SECTION - 1
    words = list(INSTRUCTIONS)
    words[ADRP] |= (pages & 3) << 29 | (pages >> 2) << 5
    body = struct.pack(f"<{len(words)}I", *words).ljust(pages * SECTION, b"\xa5") + text.ljust(SECTION, b"\0")

    dos = b"MZ".ljust(0x3C, b"\0") + struct.pack("<I", 0x40)
    optional = struct.pack("<HBBIIIII", 0x20B, 0, 0, SIZE, 0, 0, SECTION, SECTION)  # PE32+, code, entry point
    optional += struct.pack("<QII6H4I", 0, SECTION, ALIGNMENT, *[0] * 6, 0, SECTION + SIZE, ALIGNMENT, 0)
    optional += struct.pack("<HH4QII", 10, 0, *[0] * 4, 0, 16) + bytes(16 * 8)  # an EFI application
    header = b"PE\0\0" + struct.pack("<HHIIIHH", 0xAA64, 1, 0, 0, 0, len(optional), 0x0206)
    section = struct.pack("<8s6I2HI", b".text", SIZE, SECTION, SIZE, ALIGNMENT, 0, 0, 0, 0, 0x60000020)
    return (dos + header + optional + section).ljust(ALIGNMENT, b"\0") + body
