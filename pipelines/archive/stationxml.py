"""Read StationXML, of services and of strangers."""

import io
import warnings
from typing import Any


def read_stationxml(content: bytes) -> Any:
    """Return the ObsPy inventory in a StationXML file's bytes; ValueError where it is not one."""
    from obspy import read_inventory

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
