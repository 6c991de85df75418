"""Hugging Face, through huggingface_hub."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from luthier.errors import HubError, Problem
from luthier.hub import hubs
from luthier.hub.hubs import (
    Kind,
    Listing,
    RemoteFile,
    broke_off,
    endpoint_of,
    may_not_write,
    no_listing,
    refused,
    repo_missing,
    revision_missing,
    upload_failed,
)
from luthier.hub.refs import HubName


class HuggingFace:
    name: HubName = "hf"
    title = "Hugging Face"
    token_variable = "HF_TOKEN"
    endpoint_variable = "HF_ENDPOINT"
    default_revision = "main"

    @property
    def endpoint(self) -> str:
        # passed on explicitly everywhere: huggingface_hub reads the variable only when it is imported
        return endpoint_of(self.endpoint_variable, "https://huggingface.co")

    @property
    def signed_in(self) -> bool:
        from huggingface_hub import get_token

        return get_token() is not None

    def listing(self, repo: str, kind: Kind, revision: str) -> Listing:
        from huggingface_hub import HfApi

        with self._errors(repo, kind, revision):
            info = HfApi(endpoint=self.endpoint).repo_info(
                repo, repo_type=kind, revision=revision, files_metadata=True, timeout=hubs.LISTING_SECONDS
            )
            return Listing(info.sha or revision, tuple(_remote_file(sibling) for sibling in info.siblings or ()))

    def address(self, repo: str, kind: Kind, revision: str, path: str) -> tuple[str, dict[str, str]]:
        from huggingface_hub import hf_hub_url
        from huggingface_hub.utils import build_hf_headers

        url = hf_hub_url(repo, path, repo_type=kind, revision=revision, endpoint=self.endpoint)
        headers = build_hf_headers()
        return url, {name: headers[name] for name in ("authorization",) if name in headers}

    def upload(self, repo: str, folder: Path, files: Sequence[str], *, public: bool, licence: str) -> str:
        from huggingface_hub import CommitOperationAdd, HfApi

        with self._write_errors(repo):
            api = HfApi(endpoint=self.endpoint)
            api.create_repo(repo, private=not public, exist_ok=True)
            additions = [CommitOperationAdd(path_in_repo=file, path_or_fileobj=folder / file) for file in files]
            api.create_commit(repo, additions, commit_message="Upload with Luthier")
        return f"{self.endpoint}/{repo}"

    @contextlib.contextmanager
    def _write_errors(self, repo: str) -> Iterator[None]:
        import httpx2
        from huggingface_hub import errors

        try:
            yield
        except errors.HfHubHTTPError as error:
            if error.response.status_code in (401, 403):
                raise may_not_write(self, repo, error.response.status_code) from error
            raise upload_failed(self, repo, error) from error
        except (OSError, httpx2.HTTPError, ValueError, LookupError, TypeError, AttributeError, RuntimeError) as error:
            raise upload_failed(self, repo, error.__cause__ or error) from error

    @contextlib.contextmanager
    def _errors(self, repo: str, kind: Kind, revision: str) -> Iterator[None]:
        """huggingface_hub's errors as ours. The order matters: a gated repository is also a missing one there."""
        import httpx2
        from huggingface_hub import errors

        try:
            yield
        except errors.GatedRepoError as error:
            raise refused(self, repo, kind, error.response.status_code) from error
        except errors.RepositoryNotFoundError as error:
            raise repo_missing(self, repo, kind, may_be_private=error.response.status_code == 401) from error
        except errors.RevisionNotFoundError as error:
            raise revision_missing(self, repo, revision) from error
        except errors.OfflineModeIsEnabled as error:
            what, fix = "it is not in the cache, and HF_HUB_OFFLINE forbids the network", "unset HF_HUB_OFFLINE"
            raise HubError(Problem(f"hf:{repo}", what, f"{fix}, or use ms:{repo} or a folder's path")) from error
        except errors.HfHubHTTPError as error:
            if error.response.status_code in (401, 403):
                raise refused(self, repo, kind, error.response.status_code) from error
            raise broke_off(self, repo, error) from error
        except (OSError, httpx2.HTTPError) as error:
            raise broke_off(self, repo, error) from error
        except (ValueError, LookupError, TypeError, AttributeError, RuntimeError) as error:
            raise no_listing(self, repo, error) from error


def _remote_file(sibling: Any) -> RemoteFile:
    large = sibling.lfs
    if large is None:
        return RemoteFile(sibling.rfilename, sibling.size, git_sha1=sibling.blob_id)
    return RemoteFile(sibling.rfilename, sibling.size, sha256=large.sha256)
