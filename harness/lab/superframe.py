"""Frames of up to 64 KB that the kernel cuts into packets later: counts and takes out packets.

As packet sockets with PACKET_VNET_HDR give and take them: ten bytes that say how it is to be cut
and where a checksum is missing, then Ethernet, IPv4 and TCP headers and the bytes of all packets.
Of anything but TCP over IPv4, a frame is taken for one packet.
"""

import struct

NOTE = struct.Struct("=BBHHHH")
"""flags, kind of cut, bytes of headers, bytes of TCP a packet, where TCP begins, where in it the
checksum stands; the last three places count from the Ethernet header."""
TCP_OVER_IPV4, TOLD_CONGESTION = 1, 0x80
ETHERNET_BYTES = 14
IP = NOTE.size + ETHERNET_BYTES
FIN, PSH, CWR = 0x01, 0x08, 0x80
TCP = 6


def packets_in(frame: bytes) -> int:
    _, kind, _, size, _, _ = NOTE.unpack_from(frame)
    if kind & ~TOLD_CONGESTION != TCP_OVER_IPV4:
        return 1
    return -(-(len(frame) - _payload_at(frame)) // size)


def around(frame: bytes, lost: int) -> tuple[bytes | None, bytes | None]:
    """What comes before the packet of that number, from 0, and what comes after it."""
    count = packets_in(frame)
    before = _only(frame, 0, lost) if lost > 0 else None
    after = _only(frame, lost + 1, count) if lost + 1 < count else None
    return before, after


def _payload_at(frame: bytes) -> int:
    tcp = NOTE.size + NOTE.unpack_from(frame)[4]
    return tcp + (frame[tcp + 12] >> 4) * 4


def _only(frame: bytes, first: int, past: int) -> bytes:
    """With its packets from `first` up to `past` alone."""
    flags, kind, _, size, tcp_after_note, checksum = NOTE.unpack_from(frame)
    tcp, start = NOTE.size + tcp_after_note, _payload_at(frame)
    payload = frame[start + first * size : start + past * size]
    head = bytearray(frame[:start])
    cut = (kind, start - NOTE.size, size) if len(payload) > size else (0, 0, 0)
    NOTE.pack_into(head, 0, flags, *cut, tcp_after_note, checksum)
    _mend_ip(head, tcp, start - IP + len(payload), first)
    _mend_tcp(head, tcp, start - tcp + len(payload), first * size)
    if first > 0:
        head[tcp + 13] &= ~CWR & 0xFF
    if past < packets_in(frame):
        head[tcp + 13] &= ~(FIN | PSH) & 0xFF
    return bytes(head) + payload


def _mend_ip(head: bytearray, tcp: int, length: int, first: int) -> None:
    (number,) = struct.unpack_from("!H", head, IP + 4)
    struct.pack_into("!HH", head, IP + 2, length, number + first & 0xFFFF)
    struct.pack_into("!H", head, IP + 10, 0)
    struct.pack_into("!H", head, IP + 10, ~_sum(head[IP:tcp]) & 0xFFFF)


def _mend_tcp(head: bytearray, tcp: int, length: int, skipped: int) -> None:
    """The checksum so far is of addresses, protocol and length; the rest is added at the end."""
    (sequence,) = struct.unpack_from("!I", head, tcp + 4)
    struct.pack_into("!I", head, tcp + 4, sequence + skipped & 0xFFFFFFFF)
    pseudo = bytes(head[IP + 12 : IP + 20]) + struct.pack("!HH", TCP, length)
    struct.pack_into("!H", head, tcp + 16, _sum(pseudo))


def _sum(content: bytes | bytearray) -> int:
    """Of 16-bit words, in ones' complement, as the Internet's checksums are."""
    total = sum(struct.unpack(f"!{len(content) // 2}H", content))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total
