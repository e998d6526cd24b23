"""How much one of FLARE's messages may bring into this process, in either direction.

FLARE fetches the arrays of a message piece by piece until their sender says that it was the last, and each piece is a
zip file that it unpacks: by its code a peer decides how much memory the other side takes, and 2 MB of zeros, packed
well, are gigabytes. What is checked of weights (`checking`) comes after that.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from typing import Any

from nvflare.app_common.np.np_downloader import ArrayConsumer

from iopfl.base.errors import WeightsError


def limit_messages(find_limit: Callable[[], float]) -> None:
    """Bound what is fetched for a message in this process.

    Args:
        find_limit: gives the bytes that one may have, at the time.
    """
    consume = ArrayConsumer.consume_items

    def consume_within(consumer: ArrayConsumer, items: list[Any], result: Any) -> Any:
        consumer.taken = getattr(consumer, "taken", 0) + sum(map(_measure, items))
        if consumer.taken > (limit := find_limit()):
            raise WeightsError(f"expected a message of at most {limit:.0f} bytes, more came: it is refused")
        return consume(consumer, items, result)

    ArrayConsumer.consume_items = consume_within


def _measure(item: Any) -> int:
    """Bytes of a piece, which must be of that size once it is unpacked.

    Raises:
        WeightsError: it is packed, or no zip file of arrays.
    """
    if not isinstance(item, bytes | bytearray | memoryview):
        raise WeightsError(f"expected a piece of weights as bytes, given {type(item).__name__}")
    try:
        with zipfile.ZipFile(io.BytesIO(item)) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, ValueError) as error:
        raise WeightsError("expected a piece of weights as a zip file of arrays, given something else") from error
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise WeightsError("expected weights as they are, given packed ones: they could be of any size")
    if sum(entry.file_size for entry in entries) > len(item):
        raise WeightsError("expected a piece of weights to hold what it lists, it lists more")
    return len(item)
