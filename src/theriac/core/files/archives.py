"""Zip archives (torch checkpoints and .npz files), read strictly: what two readers could read in two ways is refused."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

from theriac.core.errors import InputError
from theriac.core.files.gate import opened, shown

MAX_MEMBERS = 100_000
MAX_NAME = 1024  # bytes
MAX_GAP = 24  # bytes after a member: sizes and checksum where they were not known before
_END, _ENTRY, _LOCAL, _END_64, _LOCATOR_64 = b"PK\x05\x06", b"PK\x01\x02", b"PK\x03\x04", b"PK\x06\x06", b"PK\x06\x07"
_STORED, _DEFLATED = 0, 8
_NEWEST = 63  # version 6.3 of the format


class DamagedError(ValueError):
    """An archive, pickle or array is not as its format says; the text says how."""


@dataclass(frozen=True, slots=True)
class Member:
    """One file of an archive."""

    name: str
    size: int  # bytes, unpacked
    packed: int
    method: int
    checksum: int
    header: int  # position of its local header
    raw: bytes  # its name, as the archive spells it


class Archive:
    """A zip archive, open for reading. The directory lies exactly where the end record says, and nothing lies beside it.

    Raises:
        InputError: If the file is missing or no regular file.
        DamagedError: If it is no archive, or not one that all readers read alike.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = opened(path)
        try:
            self.members = self._directory()
        except (struct.error, OSError) as error:
            self.file.close()
            raise DamagedError(f"its directory is damaged ({error})") from None
        except BaseException:
            self.file.close()
            raise
        self.total = sum(member.size for member in self.members.values())

    def __enter__(self) -> Archive:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def read_into(self, member: Member, target: memoryview, *, check: bool = False) -> None:
        """Unpack the first ``len(target)`` bytes of a member.

        Args:
            member: Which.
            target: Where to.
            check: Compare the checksum (only if all is read).

        Raises:
            DamagedError: If it holds fewer bytes, or its checksum differs.
        """
        self.file.seek(self._data(member))
        stored = member.method == _STORED
        done = self.file.readinto(target[: member.size]) if stored else self._inflate(member, target)
        if done < len(target):
            raise DamagedError(f"the member {member.name[:80]!r} holds {done:,} bytes where {len(target):,} were announced")
        if check and len(target) == member.size and zlib.crc32(target) != member.checksum:
            raise DamagedError(f"the member {member.name[:80]!r} has another checksum than the directory says")

    def read(self, name: str, limit: int, *, check: bool = False) -> bytearray:
        """A member's contents.

        Raises:
            DamagedError: If it is missing, larger than ``limit``, or damaged.
        """
        member = self.members.get(name)
        if member is None:
            raise DamagedError(f"it has no member {name[:80]!r}")
        if member.size > limit:
            raise DamagedError(f"its member {name[:80]!r} has {member.size:,} bytes; at most {limit:,} are read")
        target = bytearray(member.size)
        self.read_into(member, memoryview(target), check=check)
        return target

    def _inflate(self, member: Member, target: memoryview) -> int:
        unpack = zlib.decompressobj(-15)
        left, done, piece = member.packed, 0, b""
        try:
            while done < len(target) and not unpack.eof:
                if not piece and left:
                    piece = self.file.read(min(left, 1 << 20))
                    left = left - len(piece) if piece else 0
                out = unpack.decompress(piece, min(len(target) - done, 4 << 20))
                piece = unpack.unconsumed_tail
                target[done : done + len(out)] = out
                done += len(out)
                if not out and not piece and not left:
                    break
        except zlib.error as error:
            raise DamagedError(f"the member {member.name[:80]!r} is damaged ({error})") from None
        return done

    def _data(self, member: Member) -> int:
        """Where a member's contents begin, after its local header, which must agree with the directory."""
        self.file.seek(member.header)
        head = self.file.read(30)
        if len(head) < 30 or head[:4] != _LOCAL:
            raise DamagedError(f"the member {member.name[:80]!r} is not where the directory says")
        flags, method = struct.unpack("<HH", head[6:10])
        checksum, packed, size, name, extra = struct.unpack("<IIIHH", head[14:30])
        alike = (method, self.file.read(name)) == (member.method, member.raw)
        if not flags & 8:  # else they follow the contents
            alike &= checksum == member.checksum
            alike &= packed in (member.packed, 0xFFFFFFFF) and size in (member.size, 0xFFFFFFFF)
        if not alike or flags & 1:
            raise DamagedError(f"the member {member.name[:80]!r} is not what the directory says")
        return int(member.header + 30 + name + extra)

    def _directory(self) -> dict[str, Member]:
        end = self.file.seek(0, 2) - 22
        if end < 0:
            raise DamagedError("it is too short for an archive")
        self.file.seek(end)
        tail = self.file.read(22)
        if tail[:4] != _END or tail[20:] != b"\0\0":
            raise DamagedError("it does not end as an archive does")
        disks = struct.unpack("<HH", tail[4:8])
        here, count, size, offset = struct.unpack("<HHII", tail[8:20])
        if end >= 20:
            self.file.seek(end - 20)
            locator = self.file.read(20)
            if locator[:4] == _LOCATOR_64:
                first, at, number = struct.unpack("<IQI", locator[4:])
                end -= 20 + 56
                if (first, at, number) != (0, end, 1):
                    raise DamagedError("its second end record is not where it should be")
                self.file.seek(end)
                wide = self.file.read(56)
                if wide[:12] != _END_64 + struct.pack("<Q", 44):
                    raise DamagedError("its second end record is damaged")
                big = struct.unpack("<IIQQQQ", wide[16:])
                for short, long, top in zip(
                    (*disks, here, count, size, offset), big, (*[0xFFFF] * 4, *[0xFFFFFFFF] * 2), strict=True
                ):
                    if short not in (long, top):
                        raise DamagedError("its two end records differ")
                disks, (here, count, size, offset) = big[:2], big[2:]
        if disks != (0, 0) or here != count:
            raise DamagedError("it is a part of a larger archive")
        if offset + size != end:
            raise DamagedError("its directory is not where the end record says; another reader may find another one")
        if count > MAX_MEMBERS or size > count * (46 + MAX_NAME + 1024):
            raise DamagedError(f"its directory has {count:,} members in {size:,} bytes; at most {MAX_MEMBERS:,} are read")
        self.file.seek(offset)
        table, at, members = self.file.read(size), 0, {}
        for _ in range(count):
            member, at = _entry(table, at)
            if member.name in members:
                raise DamagedError(f"two of its members are called {member.name[:80]!r}")
            members[member.name] = member
        if at != size:
            raise DamagedError("its directory holds something else than members")
        self._refuse_overlap(members, offset)
        return members

    def _refuse_overlap(self, members: dict[str, Member], offset: int) -> None:
        """Refuse members that do not follow each other from the first byte of the file to the directory."""
        free = 0
        for member in sorted(members.values(), key=lambda m: m.header):
            if not 0 <= member.header - free <= (MAX_GAP if free else 0):
                how = "overlap" if member.header < free else "leave room for something else"
                raise DamagedError(f"its members {how} before {member.name[:80]!r}")
            free = self._data(member) + member.packed
        if not 0 <= offset - free <= MAX_GAP:
            raise DamagedError("its last member and its directory do not meet")


def _entry(table: bytes, at: int) -> tuple[Member, int]:
    """One line of the directory, and where the next one begins."""
    head = table[at : at + 46]
    if len(head) < 46 or head[:4] != _ENTRY:
        raise DamagedError("its directory is damaged")
    needs, flags, method = struct.unpack("<HHH", head[6:12])
    checksum, packed, size, name, extra, comment, disk = struct.unpack("<IIIHHHH", head[16:36])
    (header,) = struct.unpack("<I", head[42:46])
    end = at + 46 + name + extra + comment
    if end > len(table) or not 0 < name <= MAX_NAME:
        raise DamagedError("its directory is damaged")
    raw = table[at + 46 : at + 46 + name]
    try:
        called = raw.decode("utf-8" if flags & 0x800 else "cp437")
    except UnicodeDecodeError:
        raise DamagedError("a member's name is no text") from None
    if needs & 0xFF > _NEWEST:
        raise DamagedError(f"the member {called[:80]!r} asks for version {(needs & 0xFF) / 10} of the format")
    if method not in (_STORED, _DEFLATED) or flags & 1 or disk or "\0" in called:
        raise DamagedError(f"the member {called[:80]!r} is encrypted, packed in a rare way, or elsewhere")
    size, packed, header = _wide(table[at + 46 + name : end - comment], called, size, packed, header)
    if method == _STORED and size != packed:
        raise DamagedError(f"the member {called[:80]!r} is stored and has two sizes")
    return Member(called, size, packed, method, checksum, header, raw), end


def _wide(extra: bytes, called: str, *sizes: int) -> list[int]:
    """Sizes and position, from the extra field where they need 64 bits."""
    read, at, extended = list(sizes), 0, False
    while at < len(extra):
        if at + 4 > len(extra):
            raise DamagedError(f"the member {called[:80]!r} has a malformed extra field")
        kind, length = struct.unpack("<HH", extra[at : at + 4])
        value = extra[at + 4 : at + 4 + length]
        if len(value) < length or (kind == 1 and extended):
            raise DamagedError(f"the member {called[:80]!r} has a malformed extra field")
        if kind == 1:
            extended = True
            places = [i for i, size in enumerate(read) if size == 0xFFFFFFFF]
            if length < 8 * len(places):
                raise DamagedError(f"the member {called[:80]!r} has a malformed extra field")
            for i, place in enumerate(places):
                (read[place],) = struct.unpack("<Q", value[8 * i : 8 * i + 8])
        at += 4 + length
    return read


def unpacked_size(path: Path) -> int:
    """Bytes that a zip archive says it unpacks to.

    Raises:
        InputError: If it is none, or not one that all readers read alike.
    """
    try:
        with Archive(path) as archive:
            return archive.total
    except DamagedError as error:
        raise InputError(f"{shown(path)} is damaged: {error}") from None
