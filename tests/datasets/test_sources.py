"""Text from s3 and https, both over real HTTP: a moto server, and a TLS server with a certificate of our own."""

from __future__ import annotations

import datetime
import hashlib
import http.server
import ipaddress
import logging
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from crucible.datasets import download, sources
from crucible.datasets.build import build_dataset
from crucible.datasets.config import DatasetConfig
from crucible.datasets.sources import limited, open_source
from crucible.errors import ConfigError, DataError, SourceUnreachable
from crucible.store import Store, store_at
from tests.datasets.texts import make_text

TEXT = make_text(20_000).replace("\r", "").encode()
REDIRECTS = {"/to-http.txt": "http://127.0.0.1:1/text.txt", "/inside.txt": "https://127.0.0.2:1/latest/meta-data"}
SHA256 = hashlib.sha256(TEXT).hexdigest()


class Web:
    """A TLS server on this machine; `requests` are the paths asked for so far."""

    def __init__(self, folder: Path) -> None:
        self.requests: list[str] = []
        self.headers: list[dict[str, str]] = []
        web = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                path = self.path.partition("?")[0]
                web.requests.append(path)
                web.headers.append(dict(self.headers))
                if path in REDIRECTS:
                    self.send_response(302)
                    self.send_header("Location", REDIRECTS[path])
                    self.end_headers()
                    return
                self.send_response({"/busy.txt": 503, "/gone.txt": 404}.get(path, 200))
                if path == "/bomb.txt":
                    self.send_header("Content-Encoding", "gzip")
                if path != "/endless.txt":
                    self.send_header("Content-Length", str(len(TEXT)))
                self.end_headers()
                self.wfile.write(TEXT[:1000] if self.path == "/cut.txt" else TEXT)

            def log_message(self, *arguments: Any) -> None:
                pass

        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(folder / "certificate.pem", folder / "key.pem")
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        self.url = f"https://127.0.0.1:{self.server.server_address[1]}"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    folder = tmp_path_factory.mktemp("tls")
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    (folder / "certificate.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return folder


@pytest.fixture
def web(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate / "certificate.pem"))
    web = Web(certificate)
    thread = threading.Thread(target=web.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield web
    web.server.shutdown()
    web.server.server_close()
    thread.join()


def test_https_text_is_downloaded_once_for_all_its_datasets(web: Web, store: Store) -> None:
    url = f"{web.url}/text.txt"
    first = build_dataset(DatasetConfig(source=url, sha256=SHA256), store)
    other = build_dataset(DatasetConfig(source=url, sha256=SHA256, tokenizer="byte"), store)
    again = build_dataset(DatasetConfig(source=url, sha256=SHA256), store)
    assert web.requests == ["/text.txt"]
    assert other.meta.text_bytes == len(TEXT)
    assert (again.digest, again.cached) == (first.digest, True)


def test_https_text_equal_to_a_local_file_is_the_same_dataset(web: Web, store: Store, tmp_path: Path) -> None:
    (tmp_path / "local.txt").write_bytes(TEXT)
    local = build_dataset(DatasetConfig(source=str(tmp_path / "local.txt")), store)
    remote = build_dataset(DatasetConfig(source=f"{web.url}/text.txt", sha256=SHA256), store)
    assert (remote.digest, remote.cached, web.requests) == (local.digest, True, [])


def test_https_text_with_another_sha256_is_refused_and_not_kept(web: Web, store: Store, home: Path) -> None:
    with pytest.raises(DataError, match=rf"text\.txt has another sha256 than the {'0' * 64}") as refused:
        build_dataset(DatasetConfig(source=f"{web.url}/text.txt", sha256="0" * 64), store)
    assert SHA256 not in str(refused.value), "of something inside this network, it would be an answer"
    assert list((home / "cache" / "downloads").iterdir()) == []
    assert store.list() == []


@pytest.mark.parametrize(
    ("path", "error", "message"),
    [
        ("/busy.txt", SourceUnreachable, "answered 503"),
        ("/cut.txt", SourceUnreachable, "could not be downloaded"),
        ("/gone.txt", DataError, "answered 404"),
    ],
)
def test_only_a_failing_network_is_worth_another_try(
    path: str, error: type[DataError], message: str, web: Web, store: Store, home: Path
) -> None:
    with pytest.raises(DataError, match=message) as caught:
        build_dataset(DatasetConfig(source=web.url + path, sha256=SHA256), store)
    assert type(caught.value) is error
    assert list((home / "cache" / "downloads").iterdir()) == []


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/to-http.txt", r"redirected to http://127\.0\.0\.1, which is not https"),
        ("/inside.txt", r"redirected into a private network \(127\.0\.0\.2\)"),
        ("/bomb.txt", "answers with compressed content though it was asked not to"),
        ("/endless.txt", "sends more than the 5,000 bytes that it may"),
    ],
)
def test_an_answer_that_is_not_plainly_the_file_is_refused(
    path: str, message: str, web: Web, store: Store, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    public = download._is_public
    monkeypatch.setattr(download, "_is_public", lambda host: host == "127.0.0.1" or public(host))
    monkeypatch.setattr(download, "_MOST_BYTES", 5000)
    with pytest.raises(DataError, match=message):
        build_dataset(DatasetConfig(source=web.url + path, sha256=SHA256), store)
    assert list((home / "cache" / "downloads").iterdir()) == []
    assert len(web.requests) == 1


def test_credentials_in_a_url_are_used_and_nowhere_shown(
    web: Web, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    url = web.url.replace("https://", "https://user:canary-1@")
    config = DatasetConfig(source=f"{url}/text.txt?token=canary-2", sha256=SHA256)
    info = build_dataset(config, store)
    assert web.headers[0]["Authorization"].startswith("Basic ")
    assert info.meta.source_name() == config.label == f"{web.url}/text.txt"
    failed = []
    for source in (f"{url}/gone.txt?token=canary-2", url.replace("https", "http")):
        with pytest.raises((DataError, ConfigError)) as refused:
            build_dataset(DatasetConfig.parse({"source": source, "sha256": "0" * 64}), store)
        failed.append(str(refused.value))
    shown = [*failed, caplog.text, info.meta.model_dump_json(), *(str(entry.key) for entry in store.list())]
    assert "text.txt" in caplog.text
    assert not [text for text in shown if "canary" in text]


def test_a_damaged_download_cache_is_noticed(web: Web, store: Store, home: Path) -> None:
    config = DatasetConfig(source=f"{web.url}/text.txt", sha256=SHA256)
    build_dataset(config, store)
    (home / "cache" / "downloads" / SHA256).write_bytes(b"rotten")
    info = build_dataset(config.model_copy(update={"tokenizer": "byte"}), store)
    assert info.meta.text_bytes == len(TEXT)
    assert len(web.requests) == 2


@pytest.fixture
def bucket(s3_place: Any, monkeypatch: pytest.MonkeyPatch, corpus: Path) -> Store:
    """The corpus below a prefix of a bucket."""
    for name, value in s3_place.env.items():
        monkeypatch.setenv(name, value)
    bucket = store_at(s3_place.uri, **s3_place.options)
    for path in corpus.rglob("*"):
        if path.is_file():
            bucket.upload(path, f"corpus/{path.relative_to(corpus).as_posix()}")
    return bucket


def test_an_s3_prefix_is_the_same_dataset_as_the_folder(bucket: Store, corpus: Path, store: Store) -> None:
    remote = build_dataset(DatasetConfig(source=f"{bucket.uri}/corpus"), store)
    local = build_dataset(DatasetConfig(source=str(corpus)), store)
    assert (local.digest, local.cached) == (remote.digest, True)


def test_an_s3_prefix_is_not_downloaded_twice(
    bucket: Store, store: Store, monkeypatch: pytest.MonkeyPatch, corpus: Path
) -> None:
    config = DatasetConfig(source=f"{bucket.uri}/corpus")
    first = build_dataset(config, store)
    with monkeypatch.context() as patched:
        patched.setattr(sources.S3Source, "documents", None)
        second = build_dataset(config, store)
    assert (second.digest, second.cached) == (first.digest, True)
    bucket.write("corpus/doc0.txt", bucket.read("corpus/doc0.txt").swapcase())  # the size stays
    assert build_dataset(config, store).digest != first.digest


def test_a_dataset_built_in_s3_is_found_from_there(bucket: Store, s3_store: Store, corpus: Path) -> None:
    config = DatasetConfig(source=str(corpus), shard_bytes=4000)
    first = build_dataset(config, s3_store)
    assert build_dataset(config, s3_store).meta == first.meta
    assert first.uri.startswith("s3://")


def test_an_s3_prefix_without_objects_says_so(bucket: Store, store: Store) -> None:
    with pytest.raises(DataError, match=r"s3://.*/nothing holds no objects; check bucket and prefix"):
        build_dataset(DatasetConfig(source=f"{bucket.uri}/nothing"), store)
    with pytest.raises(DataError, match="s3://no-such-bucket/x does not exist"):
        build_dataset(DatasetConfig(source="s3://no-such-bucket/x"), store)


def test_max_bytes_keeps_whole_documents_and_cuts_the_last(corpus: Path, tmp_path: Path) -> None:
    documents = open_source(DatasetConfig(source=str(corpus))).documents(tmp_path, lambda state: None)
    kept = limited(documents, 6000)
    assert 6000 <= sum(document.length for document in kept) < 6200
    assert [document.length for document in kept[:-1]] == [document.length for document in documents[: len(kept) - 1]]
    last = kept[-1]
    assert last.path.read_bytes()[last.length : last.length + 1].isspace()
