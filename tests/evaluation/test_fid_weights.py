"""Weights: the official file, a path or an address; no network is a reason, a wrong path an error."""

import hashlib
import http.client
import pickle
import urllib.error
from io import BytesIO

import pytest
import torch

from ikddit.errors import ModelError
from ikddit.evaluation.fid import weights as module
from ikddit.evaluation.fid.weights import NoWeights, Weights, find_weights


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "w.pth"
    torch.save({"a.weight": torch.ones(2)}, path)
    return path


def offline(*_args, **_settings):
    raise urllib.error.URLError("no route to host")


def test_no_network_is_a_reason_and_no_failure(monkeypatch):
    monkeypatch.delenv(module.WEIGHTS_VARIABLE, raising=False)
    monkeypatch.setattr(module.urllib.request, "urlopen", offline)
    found = find_weights("auto", 1.0)
    assert isinstance(found, NoWeights)
    assert "no route to host" in found.reason
    assert "dvc repro --force --single-item fid_measured" in found.reason


def test_none_asks_nobody(monkeypatch):
    monkeypatch.setattr(module.urllib.request, "urlopen", lambda *_a, **_s: pytest.fail("asked the network"))
    assert find_weights("none", 1.0) == NoWeights("fid.weights is none")


def test_a_path_and_its_file_address_give_the_same_weights_by_hash(file):
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    for setting in (str(file), file.as_uri()):
        found = find_weights(setting, 1.0)
        assert isinstance(found, Weights)
        assert (found.source, found.sha256) == ("w.pth", digest)


def test_auto_takes_what_the_environment_names_and_a_setting_goes_before_it(file, monkeypatch):
    monkeypatch.setenv(module.WEIGHTS_VARIABLE, str(file))
    found = find_weights("auto", 1.0)
    assert isinstance(found, Weights)
    assert found.source == "w.pth"
    assert find_weights("none", 1.0) == NoWeights("fid.weights is none")
    monkeypatch.setenv(module.WEIGHTS_VARIABLE, "nowhere.pth")
    with pytest.raises(ModelError, match=r"IKDDIT_FID_WEIGHTS: nowhere\.pth: no such file"):
        find_weights("auto", 1.0)


@pytest.mark.parametrize("prefix", ["", "file://"])
def test_a_configured_file_that_does_not_exist_is_an_error(tmp_path, prefix):
    with pytest.raises(ModelError, match=r"nothing\.pth: no such file"):
        find_weights(f"{prefix}{tmp_path}/nothing.pth", 1.0)


def test_a_damaged_file_is_an_error(tmp_path):
    (tmp_path / "bad.pth").write_bytes(b"not weights")
    with pytest.raises(ModelError, match=r"bad\.pth: not readable"):
        find_weights(str(tmp_path / "bad.pth"), 1.0)


def test_nothing_but_tensors_is_unpickled(tmp_path):
    class Trap:
        def __reduce__(self):
            return (pytest.fail, ("code of the file was run",))

    (tmp_path / "trap.pth").write_bytes(pickle.dumps({"a": Trap()}))
    with pytest.raises(ModelError, match="not readable"):
        find_weights(str(tmp_path / "trap.pth"), 1.0)


def test_a_download_is_kept_and_checked_against_the_hash_in_its_name(file, monkeypatch):
    data = file.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    asked = []

    def answer(url, timeout):
        asked.append((url, timeout))
        return BytesIO(data)

    monkeypatch.setattr(module.urllib.request, "urlopen", answer)
    good = f"https://example.org/net-{digest[:8]}.pth"
    for _ in range(2):
        found = find_weights(good, 2.5)
        assert isinstance(found, Weights)
        assert found.sha256 == digest
    assert asked == [(good, 2.5)]
    with pytest.raises(ModelError, match="is not that of its name"):
        find_weights("https://example.org/net-00000000.pth", 1.0)
    assert find_weights("https://example.org/plain.pth", 1.0).sha256 == digest
    assert not list((file.parent / "torch").rglob("*00000000*"))


def test_a_login_in_an_address_is_refused_and_not_shown(caplog, monkeypatch):
    with pytest.raises(ModelError, match="takes no login") as caught:
        find_weights("https://fab:pass-word@example.org/net.pth", 1.0)
    assert "pass-word" not in str(caught.value) + caplog.text
    monkeypatch.setenv("IKDDIT_FID_WEIGHTS", "https://fab:pass-word@example.org/net.pth")
    with pytest.raises(ModelError, match=r"IKDDIT_FID_WEIGHTS: .*takes no login"):
        find_weights("auto", 1.0)


def test_a_server_that_breaks_off_gives_no_weights(monkeypatch):
    def answer(url, timeout):
        raise http.client.RemoteDisconnected("closed without an answer")

    monkeypatch.setattr(module.urllib.request, "urlopen", answer)
    found = find_weights("https://example.org/net.pth", 1.0)
    assert isinstance(found, NoWeights)
    assert "closed without an answer" in str(found)


def test_a_configured_address_that_answers_not_found_is_an_error(monkeypatch):
    def answer(url, timeout):
        raise urllib.error.HTTPError(url, 404, "Not Found", None, None)

    monkeypatch.delenv("IKDDIT_FID_WEIGHTS", raising=False)
    monkeypatch.setattr(module.urllib.request, "urlopen", answer)
    with pytest.raises(ModelError, match=r"fid\.weights: .*404"):
        find_weights("https://example.org/gone.pth", 1.0)
    assert isinstance(find_weights("auto", 1.0), NoWeights)
    monkeypatch.setenv("IKDDIT_FID_WEIGHTS", "https://example.org/gone.pth")
    with pytest.raises(ModelError, match=r"IKDDIT_FID_WEIGHTS: .*404"):
        find_weights("auto", 1.0)
