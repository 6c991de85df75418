"""ModelScope, through modelscope_hub."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from luthier.hub.hubs import (
    Kind,
    Listing,
    RemoteFile,
    broke_off,
    endpoint_of,
    may_not_write,
    no_listing,
    quiet,
    refused,
    repo_missing,
    revision_missing,
    upload_failed,
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
        return endpoint_of(self.endpoint_variable, "https://modelscope.cn")

    @property
    def signed_in(self) -> bool:
        return bool(self._api().legacy.token)

    def listing(self, repo: str, kind: Kind, revision: str) -> Listing:
        with self._errors(repo, kind, revision):
            files = self._api().list_repo_files(repo, kind, revision=revision)
            blobs = [file for file in files if file.type != "tree"]
            # ModelScope's client reports size 0 for unknown sizes too
            return Listing(revision, tuple(RemoteFile(f.path, f.size or None, f.sha256 or None) for f in blobs))

    def address(self, repo: str, kind: Kind, revision: str, path: str) -> tuple[str, dict[str, str]]:
        client = self._api().legacy
        url = client.get_download_url(repo, kind, path, revision)
        token = client.token
        headers = {"Authorization": f"Bearer {token}", "Cookie": f"m_session_id={token}"} if token else {}
        return url, headers

    def upload(self, repo: str, folder: Path, files: Sequence[str], *, public: bool, licence: str) -> str:
        from modelscope_hub import errors

        with self._write_errors(repo):
            api = self._api()
            # Before the upload, which would make a public one. Its licence is Apache-2.0 unless it is said.
            with contextlib.suppress(errors.AlreadyExistsError):
                api.create_repo(repo, "model", visibility="public" if public else "private", license=licence)
            for file in files:  # its upload of a folder prints a report, and hides why a file was refused
                api.upload_file(
                    repo, "model", folder / file, file, commit_message=f"Upload {file} with Luthier", disable_tqdm=True
                )
        return f"{self.endpoint}/models/{repo}"

    @contextlib.contextmanager
    def _write_errors(self, repo: str) -> Iterator[None]:
        from modelscope_hub import errors

        try:
            with quiet("modelscope_hub"):
                yield
        except (errors.AuthenticationError, errors.PermissionDeniedError) as error:
            raise may_not_write(self, repo, error.status_code) from error
        except (errors.HubError, OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError) as error:
            raise upload_failed(self, repo, error) from error

    def _api(self) -> Any:
        from modelscope_hub import HubApi
        from modelscope_hub.config import HubConfig

        return HubApi(HubConfig(endpoint=self.endpoint))

    @contextlib.contextmanager
    def _errors(self, repo: str, kind: Kind, revision: str) -> Iterator[None]:
        """modelscope_hub's errors as ours."""
        from modelscope_hub import errors

        try:
            with quiet("modelscope_hub"):
                yield
        except errors.NotExistError as error:
            if revision != self.default_revision:
                raise revision_missing(self, repo, revision) from error
            raise repo_missing(self, repo, kind, may_be_private=True) from error
        except (errors.AuthenticationError, errors.PermissionDeniedError) as error:
            raise refused(self, repo, kind, error.status_code) from error
        except (ValueError, LookupError, TypeError, AttributeError, RuntimeError) as error:
            raise no_listing(self, repo, error) from error
        except (errors.HubError, OSError) as error:
            raise broke_off(self, repo, error) from error
