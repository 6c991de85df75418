"""ModelScope, through modelscope_hub."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from luthier.hub.hubs import (
    Advance,
    Kind,
    Listing,
    RemoteFile,
    broke_off,
    out_of_reach,
    quiet,
    refused,
    repo_missing,
    revision_missing,
)
from luthier.hub.refs import HubName


class ModelScope:
    name: HubName = "ms"
    title = "ModelScope"
    token_variable = "MODELSCOPE_API_TOKEN"
    endpoint_variable = "MODELSCOPE_ENDPOINT"
    default_revision = "master"

    @property
    def endpoint(self) -> str:
        return (os.environ.get("MODELSCOPE_ENDPOINT") or "https://modelscope.cn").rstrip("/")

    def listing(self, repo: str, kind: Kind, revision: str) -> Listing:
        with self._errors(repo, kind, revision):
            files = self._api().list_repo_files(repo, kind, revision=revision)
            blobs = [file for file in files if file.type != "tree"]
            # ModelScope's client reports size 0 for unknown sizes too
            return Listing(revision, tuple(RemoteFile(f.path, f.size or None, f.sha256 or None) for f in blobs))

    def download(
        self, repo: str, kind: Kind, revision: str, file: RemoteFile, folder: Path, advance: Advance, fresh: bool
    ) -> None:
        with self._errors(repo, kind, revision):
            self._api().downloader.download_file(
                repo,
                kind,
                file.path,
                revision=revision,
                local_dir=folder,
                cache_dir=folder / ".cache",  # its locks go there
                expected_sha256=file.sha256,
                file_size=file.size,
                force=fresh,
                progress_callbacks=[_callback(advance)],
            )

    def _api(self) -> Any:
        from modelscope_hub import HubApi
        from modelscope_hub.config import HubConfig

        return HubApi(HubConfig(endpoint=self.endpoint))

    @contextlib.contextmanager
    def _errors(self, repo: str, kind: Kind, revision: str) -> Iterator[None]:
        """modelscope_hub's errors as ours. It draws tqdm bars of its own on standard error, which has no switch."""
        from modelscope_hub import errors

        try:
            with quiet("modelscope_hub"), contextlib.redirect_stderr(io.StringIO()):
                yield
        except errors.NotExistError as error:
            if revision != self.default_revision:
                raise revision_missing(self, repo, revision) from error
            raise repo_missing(self, repo, kind, may_be_private=True) from error
        except (errors.AuthenticationError, errors.PermissionDeniedError) as error:
            raise refused(self, repo, kind, error.status_code) from error
        except errors.NetworkError as error:
            raise out_of_reach(f"ms:{repo}", self) from error
        except (errors.HubError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise broke_off(self, repo, error) from error


def _callback(advance: Advance) -> type:
    class Callback:
        """modelscope_hub makes one of these for each file."""

        def __init__(self, filename: str, file_size: int) -> None:
            pass

        def update(self, size: int) -> None:
            advance(size)

        def end(self) -> None:
            pass

    return Callback
