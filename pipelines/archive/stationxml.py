"""Read StationXML, of services and of strangers."""

import io
import re
import warnings
from typing import Any

MAX_STATIONXML_BYTES = 2**30
# In others "<!DOCTYPE" may be written in other bytes.
_ENCODING = re.compile(rb"\A[^>]{0,200}?encoding\s*=\s*[\"']([^\"']*)[\"']")
_LIKE_ASCII = re.compile(rb"(utf-?8|(us-)?ascii|iso-?8859-\d+|latin-?1|windows-125\d)", re.IGNORECASE)


def read_stationxml(content: bytes) -> Any:
    """Return the ObsPy inventory in a StationXML file's bytes; ValueError where it is not one."""
    from obspy import read_inventory

    declared = _ENCODING.match(content)
    if b"\0" in content or (declared and not _LIKE_ASCII.fullmatch(declared[1])):
        raise ValueError("not a StationXML file that is read: it must be in UTF-8 or Latin-1")
    # StationXML needs neither, and both can name other files or make a small file large.
    if b"<!DOCTYPE" in content or b"<!ENTITY" in content:
        raise ValueError("not a StationXML file: it declares a document type or entities")
    try:
        with warnings.catch_warnings():
            # A newer schema version, or a unit that ObsPy does not know: what matters of it is checked here.
            warnings.simplefilter("ignore")
            return read_inventory(io.BytesIO(content), format="STATIONXML")
    except Exception as error:
        raise ValueError(f"not a StationXML file: {' '.join(str(error).split()) or type(error).__name__}") from None
