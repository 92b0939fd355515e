"""Folders on this machine and in object stores, read and written alike."""

from pipeline.storage.folder import Storage
from pipeline.storage.redaction import redact
from pipeline.storage.retries import StoreUnavailable
from pipeline.storage.urls import SourceError, scheme

__all__ = ["SourceError", "Storage", "StoreUnavailable", "redact", "scheme"]
