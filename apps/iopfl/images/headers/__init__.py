"""What image files say of themselves, read with Python alone before any reader is let at them.

A reader of images may follow a header to another file, or take a file for something other than its name
says and follow that. What passes here is whole in itself, and of the format that its name ends in.
"""

from __future__ import annotations

from iopfl.images.headers.header import ImageHeader
from iopfl.images.headers.reading import IMAGE_SUFFIXES, read_header

__all__ = ["IMAGE_SUFFIXES", "ImageHeader", "read_header"]
