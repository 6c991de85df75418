"""Hubs that answer garbage, hang, or send elsewhere: each is named with what to do, and nothing of it is kept."""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Callable
from pathlib import Path

import pytest
from standin import Standin

from luthier.errors import HubError
from luthier.hub import hubs, transfer
from luthier.hub.fetch import fetch_data, fetch_model

FILES = {"config.json": b"{}", "model.safetensors": b"w" * 3000}
TITLES = {"hf": "Hugging Face", "ms": "ModelScope"}
ENDPOINTS = {"hf": "HF_ENDPOINT", "ms": "MODELSCOPE_ENDPOINT"}
LISTINGS = {"hf": "/revision/main", "ms": "/repo/files"}
FILE = {"hf": "/model.safetensors", "ms": "FilePath=model.safetensors"}
NO_LIST = "answers with something that is no list of files"
MIRROR = "try again later; if {} names a mirror, try without it"
AGAIN = "run the command again: it goes on where it stopped"
NOTHING = "model.safetensors broke off, and 5 more attempts brought nothing; the last"
NO_JSON = "JSONDecodeError: Expecting value: line 1 column 1 (char 0)"
BOTH = pytest.mark.parametrize("hub", ["hf", "ms"])


def told(ref: str, fetch: Callable[[str], object] = fetch_model) -> tuple[str, str]:
    """What is wrong, and what to do."""
    with pytest.raises(HubError) as caught:
        fetch(ref)
    (problem,) = caught.value.problems
    return problem.what, problem.fix


GARBAGE: dict[str, tuple[str, bytes, str]] = {
    "a web page, from hf": ("hf", b"<html>log in</html>", NO_JSON),
    "a web page, from ms": ("ms", b"<html>log in</html>", NO_JSON),
    "nothing, from hf": ("hf", b"", NO_JSON),
    "nothing, from ms": ("ms", b"", NO_JSON),
    "another object": ("hf", b"{}", "KeyError: 'id'"),
    "files that are a number, from hf": (
        "hf",
        b'{"id": "a/b", "siblings": 5}',
        "TypeError: 'int' object is not iterable",
    ),
    "files that are a number, from ms": (
        "ms",
        b'{"Code": 200, "Data": {"Files": 5}}',
        "TypeError: object of type 'int' has no len()",
    ),
    "names that are numbers, from hf": (
        "hf",
        b'{"id": "a/b", "sha": "1", "siblings": [{"rfilename": 5}]}',
        "TypeError: 5 in place of str",
    ),
    "names that are numbers, from ms": (
        "ms",
        b'{"Code": 200, "Data": {"Files": [{"Path": 5}]}, "Success": true}',
        "TypeError: 5 in place of str",
    ),
    "null": ("ms", b"null", "AttributeError: 'NoneType' object has no attribute 'get'"),
}


@pytest.mark.parametrize("name", GARBAGE)
def test_a_listing_that_is_garbage(standin: Standin, home: Path, name: str) -> None:
    hub, body, reason = GARBAGE[name]
    standin.listing_faults["a/b"] = (200, "", body)
    expected = f"{TITLES[hub]} {NO_LIST}: {reason}", MIRROR.format(ENDPOINTS[hub])
    assert told(f"{hub}:a/b") == expected
    assert [path for path in home.rglob("*") if path.is_file() and path.suffix != ".lock"] == []


@BOTH
def test_a_listing_that_sends_in_circles(standin: Standin, hub: str) -> None:
    standin.redirects = dict.fromkeys((LISTINGS[hub], "/loop"), f"{standin.url}/loop")
    reason = {"hf": "Exceeded maximum allowed redirects.", "ms": "Exceeded 30 redirects."}[hub]
    assert told(f"{hub}:a/b") == (f"{TITLES[hub]} broke off: TooManyRedirects: {reason}", AGAIN)


@BOTH
def test_a_listing_that_sends_to_a_login_page(standin: Standin, hub: str) -> None:
    standin.files["/login"] = b"<html>"
    standin.redirects[LISTINGS[hub]] = f"{standin.url}/login"
    assert told(f"{hub}:a/b") == (f"{TITLES[hub]} {NO_LIST}: {NO_JSON}", MIRROR.format(ENDPOINTS[hub]))


@BOTH
def test_a_listing_that_sends_to_a_file_of_this_machine(standin: Standin, hub: str) -> None:
    standin.redirects[LISTINGS[hub]] = "file:///etc/passwd"
    what = {
        "hf": "Hugging Face broke off: UnsupportedProtocol: Request URL has an unsupported protocol 'file://'.",
        "ms": f"ModelScope {NO_LIST}: InvalidSchema: No connection adapters were found for 'file:///etc/passwd'",
    }
    assert told(f"{hub}:a/b")[0] == what[hub]


@BOTH
def test_a_file_that_sends_in_circles(standin: Standin, hub: str) -> None:
    standin.add_model(hub, "a/b", FILES)
    standin.redirects = dict.fromkeys((FILE[hub], "/loop"), f"{standin.url}/loop")
    assert told(f"{hub}:a/b") == (f"{NOTHING}: TooManyRedirects: Exceeded 30 redirects.", AGAIN)


@BOTH
def test_a_file_that_sends_to_a_login_page(standin: Standin, home: Path, hub: str) -> None:
    standin.add_model(hub, "a/b", FILES)
    standin.files["/login"] = b"<html>"
    standin.redirects[FILE[hub]] = f"{standin.url}/login"
    assert told(f"{hub}:a/b") == (
        f"model.safetensors came twice with another size or hash than {TITLES[hub]} lists for it",
        f"try again later or without a proxy; if {ENDPOINTS[hub]} names a mirror, try without it",
    )
    assert not list(home.rglob("model.safetensors*"))


@BOTH
def test_a_file_that_sends_to_a_file_of_this_machine(standin: Standin, hub: str) -> None:
    standin.add_model(hub, "a/b", FILES)
    standin.redirects[FILE[hub]] = "file:///etc/passwd"
    reason = "InvalidSchema: No connection adapters were found for 'file:///etc/passwd'"
    assert told(f"{hub}:a/b") == (f"{NOTHING}: {reason}", AGAIN)


def test_a_listing_that_never_comes(standin: Standin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hubs, "LISTING_SECONDS", 0.2)
    standin.stalls = (LISTINGS["hf"],)
    assert told("hf:a/b") == ("Hugging Face broke off: ReadTimeout: timed out", AGAIN)


@BOTH
def test_a_file_that_never_comes(standin: Standin, hub: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "TIMEOUT", (1.0, 0.1))
    standin.add_model(hub, "a/b", FILES)
    standin.stalls = (FILE[hub],)
    host = standin.url.removeprefix("http://").partition(":")
    reason = f"ReadTimeout: HTTPConnectionPool(host='{host[0]}', port={host[2]}): Read timed out. (read timeout=0.1)"
    assert told(f"{hub}:a/b") == (f"{NOTHING}: {reason}", AGAIN)


def certificate_of(host: str, file: Path) -> Path:
    """Key and certificate that a test's server signs for itself."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([])
    now = datetime.datetime.now(datetime.timezone.utc)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(host))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    file.write_bytes(private + certificate.public_bytes(serialization.Encoding.PEM))
    return file


def test_an_address_that_leaves_https(standin: Standin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a real TLS server to one without: whoever is in between could change the rows."""
    certificate = certificate_of("127.0.0.1", tmp_path / "server.pem")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
    secure = Standin(files={"/here.jsonl": b"{}\n"})
    secure.start(certificate)
    standin.files["/there.jsonl"] = b"{}\n"
    secure.redirects["/away.jsonl"] = f"{standin.url}/there.jsonl"
    try:
        assert [path.read_bytes() for path in fetch_data(f"{secure.url}/here.jsonl")] == [b"{}\n"]
        assert told(f"{secure.url}/away.jsonl", fetch_data) == (
            "the server sends on to an address without https://, where data can be changed on its way",
            "download the file yourself and give its path",
        )
    finally:
        secure.stop()


def test_a_certificate_that_nobody_vouches_for(tmp_path: Path) -> None:
    secure = Standin(files={"/here.jsonl": b"{}\n"})
    secure.start(certificate_of("127.0.0.1", tmp_path / "server.pem"))
    try:
        what, _ = told(f"{secure.url}/here.jsonl", fetch_data)
    finally:
        secure.stop()
    assert what == "it is not in the cache, and 127.0.0.1 cannot be reached"
    assert secure.asked(".jsonl") == []
