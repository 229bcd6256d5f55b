"""Fetch one SAE from the Hugging Face hub: "owner/repository[@revision]/path/to/it". Knows no format.

Only the weight file and the JSON beside it are downloaded. Offline, what the hub's cache holds is used.
"""

from __future__ import annotations

import logging
from pathlib import Path, PurePosixPath

from tagsteer.errors import TagsteerError
from tagsteer.sae.formats.files import SUFFIXES

log = logging.getLogger("tagsteer.sae")

_HTTP_LIBRARIES = ("httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3")
_JSON = ("cfg.json", "config.json", "card.json", "hyperparams.json", "activation_scaler.json")


def fetch(name: str) -> Path:
    """Local folder or file of the SAE; errors name what the repository has, or that it cannot be reached."""
    import huggingface_hub
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
    )

    owner, _, rest = name.partition("/")
    repository, _, inside = rest.partition("/")
    repository, _, revision = repository.partition("@")
    repo, where = f"{owner}/{repository}", PurePosixPath(inside)
    try:
        names = huggingface_hub.list_repo_files(repo, revision=revision or None)
    except HFValidationError as error:
        raise TagsteerError(f"{name!r} is no hub id and no local path: {error}") from error
    except (OfflineModeIsEnabled, LocalEntryNotFoundError, OSError) as error:
        # HfHubHTTPError is an OSError too: the hub answered, and what it said is the news.
        if isinstance(error, HfHubHTTPError):
            raise TagsteerError(
                f"the hub refuses {repo}: {str(error).splitlines()[0]}; check the name and your token"
            ) from error
        return _cached(repo, revision, where, name)
    except Exception as error:
        # Without a network the hub's client raises what its own HTTP library raises, which differs by version.
        if type(error).__module__.partition(".")[0] not in _HTTP_LIBRARIES:
            raise
        return _cached(repo, revision, where, name)
    wanted = _choose(names, where, repo)
    log.info("fetching %s from %s", ", ".join(wanted), repo)
    root = huggingface_hub.snapshot_download(repo, revision=revision or None, allow_patterns=wanted)
    return Path(root) / where


def _choose(names: list[str], where: PurePosixPath, repo: str) -> list[str]:
    """Files of the SAE at `where`: its weights (also below checkpoints/) and the JSON beside them."""
    if where.suffix in SUFFIXES:
        weights = [str(where)] if str(where) in names else []
        folders = {where.parent, where.parent.parent}
    else:
        at = [PurePosixPath(n) for n in names]
        weights = [str(p) for p in at if p.suffix in SUFFIXES and p.parent in (where, where / "checkpoints")]
        folders = {where, where.parent}
    if not weights:
        stem = where.parts[:1]
        near = sorted(
            {
                str(PurePosixPath(n).parent)
                for n in names
                if n.endswith(SUFFIXES) and PurePosixPath(n).parts[:1] == stem
            }
        )
        near = near or sorted({str(PurePosixPath(n).parent) for n in names if n.endswith(SUFFIXES)})
        raise TagsteerError(
            f"{repo} has no SAE at {str(where)!r}; it has {', '.join(near[:6])}"
            + (" ..." if len(near) > 6 else "")
        )
    return weights + [
        n for n in names if PurePosixPath(n).name in _JSON and PurePosixPath(n).parent in folders
    ]


def _cached(repo: str, revision: str, where: PurePosixPath, name: str) -> Path:
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        root = huggingface_hub.snapshot_download(repo, revision=revision or None, local_files_only=True)
    except (LocalEntryNotFoundError, OSError):
        root = ""
    path = Path(root) / where
    if not root or not path.exists():
        raise TagsteerError(
            f"{name!r} is not a local path, and the hub cannot be reached (or HF_HUB_OFFLINE is set) and "
            "its cache does not hold it: connect once, or download the files and give their folder"
        )
    log.info("offline: %s from the hub's cache", name)
    return path
