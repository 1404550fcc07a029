"""Name the format of a file that holds no miniSEED, from its first bytes.

Nothing is parsed: ObsPy's own recognition of formats reads whole files, and unpickles some.
"""

import re
import struct
from collections.abc import Callable

NAMED_FROM_BYTES = 8192
"""What a format is named from."""

_CONVERT = "; ObsPy converts it: obspy.read(OLD).write(NEW, format='MSEED')"
_SEISMIC_MAGIC: tuple[tuple[str, str], ...] = (
    (r"(BEGIN (GSE2|IMS)|DATA_TYPE WAVEFORM|WID2 )", "GSE2 or IMS"),
    (r"WID1 ", "GSE1"),
    (r"TIMESERIES [^\n]{0,200}SLIST", "SLIST (text)"),
    (r"TIMESERIES [^\n]{0,200}TSPAIR", "TSPAIR (text)"),
    (r"(Origin Time|Lat\.)[^\n]{0,80}\n", "K-NET (text)"),
    (r"DELTA: ", "SH (text)"),
    (r"DATASET ", "PDAS"),
    (r"(\x55\x3a|\x3a\x55)", "SEG-2"),
    (r"RIFF.{4}WAVE", "WAV"),
    (r"\x89HDF\r\n\x1a\n", "HDF5 (such as ASDF)"),
)
_OTHER_MAGIC: tuple[tuple[str, str], ...] = (
    (r"BZh[1-9]1AY", "a bzip2 file: unpack it"),
    (r"PK\x03\x04", "a zip archive: unpack it"),
    (r"\xfd7zXZ\x00", "an xz file: unpack it"),
    (r"\x28\xb5\x2f\xfd", "a zstandard file: unpack it"),
    (r".{257}ustar", "a tar archive: unpack it"),
    (r"PAR1", "a Parquet file"),
    (r"\d{6}[VAST][ *]", "SEED without data records (dataless)"),
    (r"(\xef\xbb\xbf)?\s*<\?xml.{0,1000}FDSNStationXML", "StationXML: archive.stationxml takes it"),
    (r"(\xef\xbb\xbf)?\s*(<\?xml|<[a-zA-Z!])", "an XML or HTML file"),
    (r"%PDF-", "a PDF file"),
)
_FIRST_SAC_VERSION, _LAST_SAC_VERSION = 6, 7


def format_problem(beginning: bytes) -> str:
    """Return why a file without a miniSEED record is not read: the name of its format; "" where that is not known.

    Args:
        beginning: the first NAMED_FROM_BYTES of the file, or all of it.
    """
    name = next((name for pattern, name in _SEISMIC_MAGIC if _begins(pattern, beginning)), "")
    name = name or next((name for holds, name in _SEISMIC_CHECKS if holds(beginning)), "")
    if name:
        return f"{name}, which is not read: Firnline reads miniSEED only{_CONVERT}"
    other = next((name for pattern, name in _OTHER_MAGIC if _begins(pattern, beginning)), "")
    if not other and beginning and _is_text(beginning):
        other = "a text file"
    return f"not miniSEED but {other}" if other else ""


def _begins(pattern: str, content: bytes) -> bool:
    return re.match(pattern.encode("latin-1"), content, re.DOTALL) is not None


def _is_sac(content: bytes) -> bool:
    """Whether a SAC header begins: its version in word 76, a sampling interval above zero in word 0."""
    if len(content) < 632:
        return False
    for order in "<>":
        (interval,), (version,) = (
            struct.unpack_from(f"{order}f", content, 0),
            struct.unpack_from(f"{order}i", content, 304),
        )
        if _FIRST_SAC_VERSION <= version <= _LAST_SAC_VERSION and 0 < interval < 1e9:
            return True
    return False


def _is_segy(content: bytes) -> bool:
    """Whether a SEG-Y file begins: lines in EBCDIC or ASCII, then a known sample format and a sampling interval."""
    if len(content) < 3600 or not (content[:1] in (b"\xc3", b"C") or set(content[:80]) <= {0, 0x20, 0x40}):
        return False
    for order in "<>":
        interval, sample_format = (struct.unpack_from(f"{order}H", content, at)[0] for at in (3216, 3224))
        if interval and sample_format in (1, 2, 3, 4, 5, 8):
            return True
    return False


def _is_reftek(content: bytes) -> bool:
    """Whether two packets of a Reftek 130 begin it."""
    kinds = (b"AD", b"CD", b"DS", b"DT", b"EH", b"ET", b"FD", b"OM", b"SC", b"SH")
    return len(content) >= 2048 and content[:2] in kinds and content[1024:1026] in kinds


def _is_text(content: bytes) -> bool:
    printable = sum(32 <= byte < 127 or byte in b"\t\r\n" for byte in content)
    return printable > 0.95 * len(content)


_SEISMIC_CHECKS: tuple[tuple[Callable[[bytes], bool], str], ...] = (
    (_is_sac, "SAC"),
    (_is_segy, "SEG-Y"),
    (_is_reftek, "Reftek 130"),
)
