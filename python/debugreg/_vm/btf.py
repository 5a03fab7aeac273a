"""Where a member of a kernel structure is, as the kernel itself says (/sys/kernel/btf/vmlinux).

The format is Documentation/bpf/btf.rst of Linux: a header, types one after the other, a table of strings.
"""

from __future__ import annotations

import struct

__all__ = ["offset_of"]

MAGIC = 0xEB9F

# BTF_KIND_*.
INT, ARRAY, STRUCT, UNION, ENUM, FUNC_PROTO, VAR, DATASEC, DECL_TAG, ENUM64 = 1, 3, 4, 5, 6, 13, 14, 15, 17, 19

# Bytes that follow a type of this kind, for each of the things it has (vlen), and once; none after other kinds.
PER_MEMBER = {STRUCT: 12, UNION: 12, ENUM: 8, FUNC_PROTO: 8, DATASEC: 12, ENUM64: 12}
ONCE = {INT: 4, ARRAY: 12, VAR: 4, DECL_TAG: 4}


def offset_of(btf: bytes, structure: str, member: str) -> int:
    """Return the offset of a member in bytes.

    Raises:
        LookupError: There is no such thing.
    """
    magic, _, _, header, types, types_length, strings, strings_length = struct.unpack_from("<HBBIIIII", btf)
    if magic != MAGIC:
        raise LookupError(f"this is no BTF: it begins with {magic:#x}")
    names = btf[header + strings : header + strings + strings_length]
    wanted = [names.find(b"\0" + name.encode() + b"\0") + 1 for name in (structure, member)]
    at, end = header + types, header + types + types_length
    while at < end:
        name, info, _ = struct.unpack_from("<III", btf, at)
        kind, count = info >> 24 & 0x1F, info & 0xFFFF
        at += 12
        if kind == STRUCT and name == wanted[0]:
            # With bit-fields (the flag in bit 31) the offset has 24 bits.
            bits = 0xFFFFFF if info >> 31 else 0xFFFFFFFF
            for place in range(at, at + 12 * count, 12):
                member_name, _, offset = struct.unpack_from("<III", btf, place)
                if member_name == wanted[1]:
                    return int(offset & bits) // 8
        at += PER_MEMBER.get(kind, 0) * count + ONCE.get(kind, 0)
    raise LookupError(f"{structure}.{member}: the kernel tells of no such thing")
