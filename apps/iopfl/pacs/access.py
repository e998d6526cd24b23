"""The PACS of the label server: where it is, how it is signed in to, and what its labels share with its images.

User and password, or a bearer token, come from a file or from the environment, never from the command line, which
everybody on the machine can read. They are read anew for each request: tokens expire.
"""

from __future__ import annotations

import base64
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import yaml

from iopfl.base.errors import ConfigError
from iopfl.base.private_files import read_secret
from iopfl.dicomweb.client import DICOMweb, Endpoint
from iopfl.dicomweb.searching import OF_STUDY, FoundSeries

__all__ = ["IMAGE_SUFFIX", "OF_STUDY", "PACS", "TOKEN_VARIABLE", "FoundSeries", "PACSAccess", "describe_series"]

logger = logging.getLogger(__name__)

IMAGE_SUFFIX = ".nii.gz"
"""Of a series as it is downloaded."""

TOKEN_VARIABLE = "IOPFL_PACS_TOKEN"
"""Environment variable of a bearer token; user and password are in MONAI Label's `MONAI_LABEL_DICOMWEB_USERNAME` and
`_PASSWORD`."""


@dataclass(frozen=True)
class PACSAccess:
    """Where a PACS is and how it is asked.

    Attributes:
        url: root of its DICOMweb services.
        credentials: YAML file with `token`, or `username` and `password`; None = from the environment, or none.
        ca: PEM file of the authority that signed its certificate; None = the public ones count.
    """

    url: str
    credentials: Path | None = None
    ca: Path | None = None

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f"expected the DICOMweb address of a PACS, http(s)://..., given {self.shown_url!r}")
        if parts.username or parts.password:
            raise ConfigError(
                f"the address of the PACS must not hold a password, which logs and process lists would show: "
                f"give {self.shown_url} and --conf pacs_credentials FILE"
            )

    @property
    def shown_url(self) -> str:
        """The address, without what must not be shown."""
        parts = urlsplit(self.url)
        return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment=""))

    @property
    def verify(self) -> str | bool:
        """What `requests` and `httpx` take: the authority's file, or True for the public ones."""
        return str(self.ca) if self.ca else True

    def headers(self) -> dict[str, str]:
        """The header that signs in, as the credentials are now; empty without any.

        Raises:
            ConfigError: the file of credentials is not as it should be.
        """
        known = self._read_file() if self.credentials else _read_environment()
        if known.get("token"):
            return {"Authorization": f"Bearer {known['token']}"}
        if known.get("username"):
            pair = f"{known['username']}:{known.get('password', '')}".encode()
            return {"Authorization": f"Basic {base64.b64encode(pair).decode()}"}
        return {}

    def _read_file(self) -> Mapping[str, Any]:
        expected = f"{self.credentials}: expected YAML with token, or username and password"
        try:
            values = yaml.safe_load(read_secret(self.credentials))  # type: ignore[arg-type]
        except (ValueError, yaml.YAMLError) as error:
            raise ConfigError(f"{expected}, but it cannot be read ({type(error).__name__})") from error
        if not isinstance(values, dict) or not (values.get("token") or values.get("username")):
            raise ConfigError(f"{expected}, found neither")
        return values


class PACS(DICOMweb):
    """A PACS's DICOMweb services, below the prefixes that MONAI Label is set to."""

    def __init__(self, access: PACSAccess) -> None:
        from monailabel.config import settings

        super().__init__(
            Endpoint(
                access.url,
                name=f"the PACS at {access.shown_url}",
                headers=access.headers,
                verify=access.ca or True,
                ca_hint="--conf pacs_ca FILE",
                prefixes=(
                    settings.MONAI_LABEL_QIDO_PREFIX,
                    settings.MONAI_LABEL_WADO_PREFIX,
                    settings.MONAI_LABEL_STOW_PREFIX,
                ),
            )
        )
        self.access = access


def describe_series(series: FoundSeries) -> dict[str, Any]:
    """What clients are told of an image: no patient's name or number, which none of them needs."""
    return {
        "name": f"{series.uid}{IMAGE_SUFFIX}",
        "SeriesInstanceUID": series.uid,
        "StudyInstanceUID": series.study,
        "Modality": series.modality,
        "instances": series.instances,
    }


def _read_environment() -> Mapping[str, Any]:
    from monailabel.config import settings

    token = os.environ.get(TOKEN_VARIABLE)
    if token:
        return {"token": token}
    return {"username": settings.MONAI_LABEL_DICOMWEB_USERNAME, "password": settings.MONAI_LABEL_DICOMWEB_PASSWORD}
