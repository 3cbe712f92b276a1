"""Damage to files.

Half of it is blind: flipped bits, other bytes, missing and doubled pieces. The rest keeps a format's lengths and
checksums right, so that it reaches what lies behind them: an array in an archive, a number in a header, a cell.
"""

from __future__ import annotations

import gzip
import io
import json
import re
import struct
import warnings
import zipfile
from collections.abc import Callable
from random import Random
from typing import Any

Rewrite = Callable[[bytes, Random], bytes]

_NUMBER = re.compile(rb"-?\d+(?:\.\d+)?(?:e[-+]?\d+)?")
_ODD_NUMBERS = (
    b"0", b"-1", b"1", b"2", b"7", b"127", b"255", b"256", b"65536", b"1000000", b"2147483648", b"4294967296",
    b"1099511627776", b"9007199254740993", b"9223372036854775807", b"9223372036854775808", b"18446744073709551615",
    b"99999999999999999999999", b"0.5", b"-0.0", b"1e9", b"1e40", b"1e400", b"nan", b"inf", b"-inf", b"NaN",
    b"Infinity", b"", b"null", b"true", b"1_000", b"0x10", b"x", b"[]", b"{}", b"[1, 2]", b"'a'",
)  # fmt: skip
_ODD_TEXT = (b",", b"\n", b"\r", b"\r\n", b"\n\n", b"\t", b'"', b"'", b"\x00", b"\xff", b"\xef\xbb\xbf", b"{", b"}",
             b"[", b"]", b":", b": ", b"- ", b"&a ", b"*a", b"<<: ", b"!!python/name:os.system ", b"!!float ", b"#",
             b"%", b"---\n", b"\xed\xa0\x80", b"\xe2\x80\xa8", b";", b"../", b"/")  # fmt: skip
_ODD_INTEGERS = (0, 1, -1, 2, 127, 128, 255, 65535, 2**31 - 1, -(2**31), 2**32 - 1, 2**40, 2**62, 2**63 - 1, -(2**63))
_ODD_VALUES: tuple[Any, ...] = (
    None, True, -1, 0, 1, 2, 3.5, 1e308, float("nan"), float("inf"), 2**31, 2**63, 2**64, 10**30, "", "x", "0",
    "\x1b[1m", [], [0], [[]], {}, {"a": 1}, "../x", "a" * 2000,
)  # fmt: skip
_DTYPES = ("|b1", "|i1", "|u1", "<i2", "<i4", "<i8", "<u4", "<u8", ">i4", ">i8", "<f2", "<f4", "<f8", ">f8", "<c8",
           "<c16", "<f16", "|O", "|S3", "<U1", "<U5", "<M8[ns]", "<m8[s]", "|V4", "<i4,i4")  # fmt: skip


def damage(data: bytes, name: str, random: Random) -> bytes:
    """Return a damaged copy of a file of that name; once to three times, blindly or by its format."""
    rewrite = next((known for suffix, known in _BY_SUFFIX.items() if name.endswith(suffix)), blind)
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        data = (blind if random.random() < 0.4 else rewrite)(data, random)
    return data


def blind(data: bytes, random: Random) -> bytes:
    """Change bytes anywhere."""
    changed = bytearray(data)
    kind = random.randrange(7)
    at = random.randrange(len(data) + 1)
    if kind == 0 and data:
        for _ in range(random.choice((1, 1, 2, 8))):
            changed[random.randrange(len(data))] ^= 1 << random.randrange(8)
    elif kind == 1 and data:
        for _ in range(random.choice((1, 2, 8, 40))):
            changed[random.randrange(len(data))] = random.randrange(256)
    elif kind == 2:
        del changed[at:]
    elif kind == 3:
        changed[at:at] = random.randbytes(random.choice((1, 4, 64)))
    elif kind == 4:
        end = min(len(data), at + random.choice((1, 4, 16, 256, 4096)))
        changed[at:end] = changed[at:end] * random.choice((0, 2, 5))
    elif kind == 5:
        other = random.randrange(len(data) + 1)
        piece = data[other : other + random.choice((1, 4, 16, 256))]
        changed[at : at + len(piece)] = piece
    else:
        width = random.choice((1, 2, 4, 8))
        changed[at : at + width] = _odd_integer(width, random)
    return bytes(changed)


def text(data: bytes, random: Random) -> bytes:
    """Change a number, a line, a cell or a character."""
    kind = random.randrange(6)
    if kind <= 1:
        found = list(_NUMBER.finditer(data))
        if found:
            chosen = random.choice(found)
            return data[: chosen.start()] + random.choice(_ODD_NUMBERS) + data[chosen.end() :]
    if kind == 2:
        at = random.randrange(len(data) + 1)
        return data[:at] + random.choice(_ODD_TEXT) + data[at:]
    separator = random.choice((b"\n", b"\n", b",", b":", b" "))
    pieces = data.split(separator)
    at, other = random.randrange(len(pieces)), random.randrange(len(pieces))
    if kind == 3:
        del pieces[at]
    elif kind == 4:
        pieces.insert(at, pieces[other])
    else:
        pieces[at], pieces[other] = pieces[other], pieces[at]
    return separator.join(pieces)


def npy(data: bytes, random: Random) -> bytes:
    """Change the header of an array, with its length kept right, or a value."""
    if len(data) < 12 or not data.startswith(b"\x93NUMPY"):
        return blind(data, random)
    wide = data[6] > 1
    start = 12 if wide else 10
    end = start + int.from_bytes(data[8:start], "little")
    header, body = data[start:end].rstrip(), data[end:]
    kind = random.randrange(5)
    if kind == 0:
        header = text(header, random)
    elif kind == 1:
        header = re.sub(rb"'descr': '[^']*'", f"'descr': '{random.choice(_DTYPES)}'".encode(), header)
    elif kind == 2:
        header = header.replace(b"False", b"True") if b"False" in header else header.replace(b"True", b"False")
    elif kind == 3:
        width = random.choice((1, 2, 4, 8))
        at = width * random.randrange(len(body) // width + 1)
        body = body[:at] + _odd_integer(width, random) + body[at + width :]
    else:
        numbers = list(_NUMBER.finditer(header[header.find(b"shape") :]))
        offset = header.find(b"shape")
        if numbers:
            chosen = random.choice(numbers)
            value = str(random.choice((*_ODD_INTEGERS, 3, 40))).encode()
            header = header[: offset + chosen.start()] + value + header[offset + chosen.end() :]
    header += b" " * (-(start + len(header) + 1) % 64) + b"\n"
    length = (len(header) & (0xFFFFFFFF if wide else 0xFFFF)).to_bytes(start - 8, "little")
    return data[:8] + length + header + body


def archive(data: bytes, random: Random) -> bytes:
    """Change, drop, rename, swap or double members of a zip archive, with checksums kept right."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as file:
            members = [(info.filename, file.read(info)) for info in file.infolist()]
    except Exception:  # an archive that earlier damage broke
        return blind(data, random)
    if not members:
        return blind(data, random)
    kind, at, other = random.randrange(10), random.randrange(len(members)), random.randrange(len(members))
    name, content = members[at]
    if kind == 0:
        del members[at]
    elif kind == 1:
        members[at] = (
            random.choice((text(name.encode(), random).decode("latin1"), "../../x", members[other][0])),
            content,
        )
    elif kind == 2:
        members[at], members[other] = (name, members[other][1]), (members[other][0], content)
    elif kind == 3:
        members.append((name, members[other][1]))
    else:
        members[at] = name, damage(content, name, random)
    out = io.BytesIO()
    compression = random.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
    with warnings.catch_warnings(action="ignore"), zipfile.ZipFile(out, "w", compression, compresslevel=1) as file:
        for name, content in members:
            file.writestr(zipfile.ZipInfo(name.replace("\x00", "") or "x"), content, compression)
    return out.getvalue()


def pickled(data: bytes, random: Random) -> bytes:
    """Change a type in a pickle of arrays, a short integer, or a byte."""
    if random.random() < 0.4:
        found = list(re.finditer(rb"[fiub][1248]|_rebuild_tensor_v2|(Float|Long|Int)Storage|ndarray|dtype", data))
        if found:
            chosen = random.choice(found)
            names = (b"O8", b"V8", b"c8", b"S1", b"U2", b"M8", b"f2", b"i8", b"BoolStorage", b"DoubleStorage", b"dtype")
            return data[: chosen.start()] + random.choice(names) + data[chosen.end() :]
    found = list(re.finditer(rb"[KMJ]", data))
    if found and random.random() < 0.6:
        at = random.choice(found).end()
        width = random.choice((1, 2, 4))
        return data[:at] + _odd_integer(width, random) + data[at + width :]
    return blind(data, random)


def compressed_text(data: bytes, random: Random) -> bytes:
    """Change text inside a gzip file."""
    try:
        content = gzip.decompress(data)
    except (OSError, EOFError, ValueError, ArithmeticError, gzip.zlib.error):  # type: ignore[attr-defined]
        return blind(data, random)
    return gzip.compress(text(content, random), 1, mtime=0)


def safetensors(data: bytes, random: Random) -> bytes:
    """Change the JSON header of a safetensors file, with its length kept right, or a number in its body."""
    if len(data) < 8 or (length := int.from_bytes(data[:8], "little")) > len(data) - 8:
        return blind(data, random)
    header, body = data[8 : 8 + length], data[8 + length :]
    kind = random.randrange(4)
    if kind == 0:
        header = text(header, random)
    elif kind == 1:
        width = random.choice((1, 2, 4, 8))
        at = width * random.randrange(len(body) // width + 1)
        body = body[:at] + _odd_integer(width, random) + body[at + width :]
    else:
        try:
            header = json.dumps(tree(json.loads(header), random)).encode()
        except ValueError:
            header = text(header, random)
    header += b" " * (-len(header) % 8)
    return struct.pack("<Q", len(header)) + header + body


def tree(value: Any, random: Random) -> Any:
    """Change one place of a JSON value; text that holds JSON is changed inside."""
    if isinstance(value, dict) and value and random.random() < 0.9:
        key, changed = random.choice(list(value)), dict(value)
        kind = random.randrange(12)
        if kind == 0:
            del changed[key]
        elif kind == 1:
            changed[random.choice(("x", "", key + "x", "\x1b"))] = changed.pop(key)
        else:
            changed[key] = tree(value[key], random)
        return changed
    if isinstance(value, list) and value and random.random() < 0.9:
        at, changed_list = random.randrange(len(value)), list(value)
        if random.random() < 0.2:
            changed_list[at : at + 1] = [] if random.random() < 0.5 else [value[at]] * 2
        else:
            changed_list[at] = tree(value[at], random)
        return changed_list
    if isinstance(value, str) and value[:1] in ("{", "["):
        try:
            return json.dumps(tree(json.loads(value), random))
        except ValueError:
            pass
    return random.choice(_ODD_VALUES)


def json_lines(data: bytes, random: Random) -> bytes:
    """Change one place of one line of JSON, or the text."""
    lines = data.split(b"\n")
    at = random.randrange(len(lines))
    try:
        lines[at] = json.dumps(tree(json.loads(lines[at]), random)).encode()
    except ValueError:
        return text(data, random)
    return b"\n".join(lines)


def _odd_integer(width: int, random: Random) -> bytes:
    value = random.choice(_ODD_INTEGERS) & ((1 << 8 * width) - 1)
    return value.to_bytes(width, random.choice(("little", "little", "big")))


_BY_SUFFIX: dict[str, Rewrite] = {
    ".npy": npy,
    ".npz": archive,
    ".pt": archive,
    ".zip": archive,
    ".csv.gz": compressed_text,
    ".csv": text,
    ".yaml": text,
    ".json": json_lines,
    ".jsonl": json_lines,
    ".partial": json_lines,
    ".bad_rows": text,
    "SHA256SUMS": text,
    "data.pkl": pickled,
    **dict.fromkeys((".x", ".y", ".tx", ".ty", ".allx", ".ally", ".graph"), pickled),  # Planetoid's
    ".index": text,
    ".safetensors": safetensors,
}
