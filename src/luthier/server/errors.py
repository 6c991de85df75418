"""Refusals in the shape of OpenAI's API: `{"error": {"message", "type", "param", "code"}}`, all problems in one."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from luthier.errors import InputError

_NOISE = re.compile(r"body|str|list\[.*\]|constrained-.*|function-.*")  # where pydantic looked; no name of a field
TYPES = {401: "authentication_error", 429: "rate_limit_error", 500: "server_error", 503: "server_error"}


class ApiError(Exception):
    """A request that is refused. `param` is the field, `code` what a program can tell it by."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code, self.headers = status, message, param, code, headers

    def body(self) -> dict[str, Any]:
        kind = TYPES.get(self.status, "invalid_request_error")
        return {"error": {"message": _whole(self.message), "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        return JSONResponse(self.body(), self.status, dict(self.headers or {}))


def of_validation(errors: Sequence[Mapping[str, Any]]) -> ApiError:
    """All that pydantic found, each with the field's name; what no field is for is named as OpenAI names it."""
    where = [".".join(_whole(str(p)) for p in error["loc"] if not _NOISE.fullmatch(str(p))) for error in errors]
    if errors[0]["type"] == "json_invalid":
        what = f"The body is not JSON: {errors[0].get('ctx', {}).get('error', 'it cannot be read')}."
        return ApiError(400, what, code="invalid_json")
    said = dict.fromkeys(map(_sentence, where, errors))
    return ApiError(400, " ".join(said), param=where[0] or None, code="invalid_value")


def _whole(text: str) -> str:
    """Without half characters (lone surrogates), which a path or name may hold and no UTF-8 can."""
    return text.encode(errors="backslashreplace").decode()


def _sentence(where: str, error: Mapping[str, Any]) -> str:
    if error["type"] == "extra_forbidden":
        return f"Unrecognized request argument supplied: {where}."
    what = str(error["msg"]).removeprefix("Value error, ").rstrip(".")
    return f"{where}: {what}." if where else f"{what}."


def of_input(error: InputError, *, code: str, param: str | None = None) -> ApiError:
    """A problem that another part of Luthier found, with its fix."""
    return ApiError(400, " ".join(f"{p.where}: {p.what}; {p.fix}." for p in error.problems), param=param, code=code)


def install(app: FastAPI) -> None:
    """Every refusal of the application has this shape; a mistake of ours says no more than that it is one."""

    @app.exception_handler(ApiError)
    async def _(request: Request, error: ApiError) -> JSONResponse:
        request.state.facts.setdefault("error", error.code)
        return error.response()

    @app.exception_handler(RequestValidationError)
    async def _(request: Request, error: RequestValidationError) -> JSONResponse:
        refusal = of_validation(error.errors())
        request.state.facts["error"] = refusal.code
        return refusal.response()

    @app.exception_handler(HTTPException)
    async def _(request: Request, error: HTTPException) -> JSONResponse:
        what = {404: f"There is nothing at {request.url.path}.", 405: f"{request.method} is not allowed here."}
        message = what.get(error.status_code, str(error.detail))
        code = "unknown_url" if error.status_code in what else "invalid_json"
        request.state.facts["error"] = code
        return ApiError(error.status_code, f"{message.rstrip('.')}.", code=code, headers=error.headers).response()
