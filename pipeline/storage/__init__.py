"""Folders on this machine and in remote stores, with the same operations for both."""

from pipeline.storage.folder import Storage, is_within
from pipeline.storage.redaction import redact
from pipeline.storage.retries import StoreUnavailable
from pipeline.storage.unwritable import StorageUnwritable
from pipeline.storage.urls import SourceError, scheme

__all__ = ["SourceError", "Storage", "StorageUnwritable", "StoreUnavailable", "is_within", "redact", "scheme"]
