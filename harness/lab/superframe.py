"""Frames of up to 64 KB that the kernel segments later (TSO): counts and removes their packets.

Packet sockets with PACKET_VNET_HDR send and receive them with a virtio_net_hdr of ten bytes, which
says how to segment the frame and where a checksum is missing; then come the Ethernet, IPv4 and TCP
headers and the payload of all packets. A frame of anything but TCP over IPv4 counts as one packet.
"""

import struct

VNET_HEADER = struct.Struct("=BBHHHH")
"""virtio_net_hdr: flags, gso_type, hdr_len (bytes of headers), gso_size (payload bytes of a
packet), csum_start (offset of TCP), csum_offset (offset of the checksum in TCP). hdr_len and
csum_start count from the Ethernet header."""
TCP_OVER_IPV4, GSO_ECN = 1, 0x80
ETHERNET_BYTES = 14
IP = VNET_HEADER.size + ETHERNET_BYTES
FIN, PSH, CWR = 0x01, 0x08, 0x80
TCP = 6


def packets_in(frame: bytes) -> int:
    """Packets into which the kernel will segment the frame: ceil(payload / gso_size)."""
    _, kind, _, size, _, _ = VNET_HEADER.unpack_from(frame)
    if kind & ~GSO_ECN != TCP_OVER_IPV4:
        return 1
    return -(-(len(frame) - _payload_at(frame)) // size)


def around(frame: bytes, lost: int) -> tuple[bytes | None, bytes | None]:
    """The frames of the packets before and after packet number `lost`, counted from 0."""
    count = packets_in(frame)
    before = _only(frame, 0, lost) if lost > 0 else None
    after = _only(frame, lost + 1, count) if lost + 1 < count else None
    return before, after


def _payload_at(frame: bytes) -> int:
    # The upper four bits of byte 12 of TCP are its header's length in 32-bit words.
    tcp = VNET_HEADER.size + VNET_HEADER.unpack_from(frame)[4]
    return tcp + (frame[tcp + 12] >> 4) * 4


def _only(frame: bytes, first: int, past: int) -> bytes:
    """The frame with only its packets `first` to `past` - 1."""
    flags, kind, _, size, tcp_start, checksum = VNET_HEADER.unpack_from(frame)
    tcp, start = VNET_HEADER.size + tcp_start, _payload_at(frame)
    payload = frame[start + first * size : start + past * size]
    head = bytearray(frame[:start])
    cut = (kind, start - VNET_HEADER.size, size) if len(payload) > size else (0, 0, 0)
    VNET_HEADER.pack_into(head, 0, flags, *cut, tcp_start, checksum)
    _mend_ip(head, tcp, start - IP + len(payload), first)
    _mend_tcp(head, tcp, start - tcp + len(payload), first * size)
    # As segmentation does: CWR only in the first packet, FIN and PSH only in the last.
    if first > 0:
        head[tcp + 13] &= ~CWR & 0xFF
    if past < packets_in(frame):
        head[tcp + 13] &= ~(FIN | PSH) & 0xFF
    return bytes(head) + payload


def _mend_ip(head: bytearray, tcp: int, length: int, first: int) -> None:
    # Packet i of a frame gets the identification of the frame + i.
    (number,) = struct.unpack_from("!H", head, IP + 4)
    struct.pack_into("!HH", head, IP + 2, length, number + first & 0xFFFF)
    struct.pack_into("!H", head, IP + 10, 0)
    struct.pack_into("!H", head, IP + 10, ~_sum(head[IP:tcp]) & 0xFFFF)


def _mend_tcp(head: bytearray, tcp: int, length: int, skipped: int) -> None:
    """Sets sequence number and checksum.

    The checksum covers only the pseudo-header (addresses, protocol, length); the kernel adds the
    rest when it sends the frame.
    """
    (sequence,) = struct.unpack_from("!I", head, tcp + 4)
    struct.pack_into("!I", head, tcp + 4, sequence + skipped & 0xFFFFFFFF)
    pseudo = bytes(head[IP + 12 : IP + 20]) + struct.pack("!HH", TCP, length)
    struct.pack_into("!H", head, tcp + 16, _sum(pseudo))


def _sum(content: bytes | bytearray) -> int:
    """Ones' complement sum of 16-bit words, as in the Internet checksum (RFC 1071)."""
    total = sum(struct.unpack(f"!{len(content) // 2}H", content))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total
