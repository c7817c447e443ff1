"""Evidence: what is wrong with an artifact."""

from __future__ import annotations

from collections.abc import Mapping

EVIDENCE = {
    "artifact-absent": "no such file or folder",
    "evidence-refused": "{error}",
    "bytes-not-pinned": "the bytes are not the pinned ones",
    "files-not-pinned": "the files are not the pinned ones",
    "folder-is-another": "agrees with its own {manifest}, so the folder as a whole is another one",
    "differs-from-own-manifest": "against its own {manifest}: {differences}",
    "record-contradicts-its-manifest": "the record contradicts its own manifest: {differences}",
    "files-changed": "changed {paths:list 5}",
    "files-added": "added {paths:list 5}",
    "files-removed": "removed {paths:list 5}",
}

TOPICS: Mapping[str, Mapping[str, str]] = {"Evidence": EVIDENCE}
