"""The page over HTTP, on the loopback."""

import importlib.util
import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest
from PIL import Image
from torch import nn

import foveate as fv
from foveate.cli import main
from foveate.errors import FoveateError

pytestmark = pytest.mark.skipif(importlib.util.find_spec("gradio") is None, reason="foveate[web] is not installed")
SERVE = (sys.executable, "-m", "foveate", "serve")


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    for name in ("bright", "dark"):
        for part in ("train", "val"):
            (root / part / name).mkdir(parents=True)
            Image.new("L", (40, 40), 200 if name == "bright" else 20).save(root / part / name / "0.png")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [*SERVE, "--port", str(port), "--max-megabytes", "0.02", "--data", str(root)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as server:
        address = f"http://127.0.0.1:{port}"
        try:
            for _ in range(600):
                assert server.poll() is None, server.stderr.read()
                try:
                    get(address)
                    break
                except urllib.error.URLError:
                    time.sleep(0.2)
            yield address
        finally:
            server.terminate()


def get(url):
    with urllib.request.urlopen(url, timeout=30) as answer:  # noqa: S310 - our own address
        return answer.status, answer.read().decode()


def post(address, name, data):
    boundary = "----boundary"
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'
    body = head.encode() + data + f"\r\n--{boundary}--\r\n".encode()
    headers = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
    request = urllib.request.Request(f"{address}/gradio_api/upload", body, headers)  # noqa: S310
    with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310
        return json.loads(answer.read())


def test_the_page_asks_no_other_server(address):
    status, text = get(address)
    assert status == 200
    assert "foveate" in text
    assert "fonts.googleapis" not in text
    _, config = get(f"{address}/config")
    assert "Or one of these" in config
    assert "at most 0.02 MB and 24 megapixels" in config


def _luminance(colour):
    """Relative luminance of #rrggbb (WCAG 2.2)."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize(
    ("text", "ground"),
    [
        ("button_primary_text_color", "button_primary_background_fill"),
        ("button_primary_text_color_dark", "button_primary_background_fill_dark"),
        ("button_primary_text_color_hover", "button_primary_background_fill_hover"),
        ("color_accent", "background_fill_primary"),  # the tab that is chosen
        ("body_text_color_subdued", "background_fill_primary"),
        ("body_text_color_subdued_dark", "background_fill_primary_dark"),
    ],
)
def test_text_has_enough_contrast(text, ground):
    from foveate.web.looks import LOOKS

    def value(name):
        found = getattr(LOOKS["theme"], name)
        return value(found.removeprefix("*")) if found.startswith("*") else {"white": "#ffffff"}.get(found, found)

    lighter, darker = sorted((_luminance(value(text)), _luminance(value(ground))), reverse=True)
    assert (lighter + 0.05) / (darker + 0.05) >= 4.5


def test_the_page_has_its_style_and_the_names_of_its_parts(address):
    _, config = get(f"{address}/config")
    served = json.loads(config)
    assert "caption-label" in served["css"]
    assert "button.ariaLabel" in served["js"]
    headers = [part["props"].get("headers", []) for part in served["components"]]
    assert all(name for one in headers for name in one)  # a column without a name is read aloud as nothing


def test_a_file_over_the_limit_is_refused(address):
    with pytest.raises(urllib.error.HTTPError) as refused:
        post(address, "large.png", b"x" * 50_000)
    refused.value.close()
    assert refused.value.code == 413


def test_a_path_like_name_stays_in_the_servers_folder(address):
    (path,) = post(address, "../../../escaped.png", b"x")
    assert ".." not in path


@pytest.mark.parametrize("path", ["/etc/passwd", "pyproject.toml"])
def test_no_file_of_the_machine_is_given_out(address, path):
    with pytest.raises(urllib.error.HTTPError) as refused:
        get(f"{address}/gradio_api/file={path}")
    refused.value.close()
    assert refused.value.code in (403, 404)


def test_a_port_that_is_taken_is_said(address, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["serve", "--port", address.rpartition(":")[2]])
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert "cannot be used: Address already in use; give another" in said
    assert "Traceback" not in said


@pytest.mark.parametrize(("host", "port"), [("127.0.0.1", 70_000), ("no.such.host.invalid", 7860), ("127.0.0.1", -1)])
def test_an_address_that_is_none(host, port):
    with pytest.raises(fv.FoveateError, match=f"port {port} at {host} cannot be used: .*; give another"):
        fv.serve(host=host, port=port, block=False)


@pytest.mark.parametrize("option", ["--max-megapixels", "--max-megabytes"])
@pytest.mark.parametrize("value", ["inf", "nan", "0", "-1"])
def test_a_limit_that_is_none(option, value, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["serve", option, value])
    assert stopped.value.code == 2
    assert re.fullmatch(rf"foveate: {option} \S+: give a number above 0\n", capsys.readouterr().err)


def test_a_limit_below_one():
    with pytest.raises(FoveateError, match="at most 0 pixels of an image: .* give a limit of 1 or more"):
        fv.serve(max_pixels=0)


def _free_port(host):
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as free:
        try:
            free.bind((host, 0))
        except OSError:
            pytest.skip(f"this machine has no address {host}")
        return free.getsockname()[1]


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_the_page_answers_here_whatever_the_proxy(host):
    port = _free_port(host)
    proxies = dict.fromkeys(("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"), "http://127.0.0.1:9")  # nobody
    rest = {name: value for name, value in os.environ.items() if name.lower() != "no_proxy"}
    command = [*SERVE, "--host", host, "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=rest | proxies) as server:
        try:
            said = server.stderr.readline().decode()
            address = said.partition(" ")[0]
            assert address == f"http://{'[::1]' if ':' in host else host}:{port}", said + server.stderr.read().decode()
            with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(address, timeout=30) as answer:
                assert answer.status == 200
        finally:
            server.terminate()


def test_what_is_reached_without_a_proxy_is_as_before_afterwards(monkeypatch):
    from foveate.web.server import _without_proxy

    monkeypatch.setenv("NO_PROXY", "example.org")
    monkeypatch.delenv("no_proxy", raising=False)
    with _without_proxy("::1"):
        assert os.environ["NO_PROXY"] == os.environ["no_proxy"] == "example.org,::1,127.0.0.1,localhost"
    assert os.environ["NO_PROXY"] == "example.org"
    assert "no_proxy" not in os.environ


def test_a_folder_that_is_none(tmp_path):
    with pytest.raises(fv.FoveateError, match="no folder"):
        fv.serve([str(tmp_path / "nothing")])
    with pytest.raises(fv.FoveateError):
        fv.serve([str(tmp_path)])


@pytest.mark.parametrize(("models", "given"), [(nn.Linear(1, 1), "Linear"), ([nn.Linear(1, 1)], "Linear"), (3, "int")])
def test_what_is_no_folder(models, given):
    with pytest.raises(FoveateError, match=rf"folders of saved models, not {given}:"):
        fv.serve(models)


def test_one_folder_is_a_folder(tmp_path):
    with pytest.raises(FoveateError, match=r"there is no folder 'nowhere'"):
        fv.serve("nowhere")


def test_labels_tell_saved_models_apart(tmp_path):
    from foveate.web.server import _labels

    folders = [tmp_path / name for name in ("a/last", "b/last", "c", "x/y/last", "z/y/last")]
    for folder in folders:
        folder.mkdir(parents=True)
    assert list(_labels([str(folder) for folder in folders])) == ["a/last", "b/last", "c", "x/y/last", "z/y/last"]
    deep = [tmp_path / name for name in ("1/p/runs/x/last", "2/p/runs/x/last", "2/p/runs/y/last")]
    for folder in deep:
        folder.mkdir(parents=True)
    labels = _labels([*deep, deep[0], tmp_path / "1" / "p" / ".." / "p" / "runs" / "x" / "last"])
    assert list(labels) == ["1/p/runs/x/last", "2/p/runs/x/last", "y/last"]
    assert list(labels.values()) == [str(folder) for folder in deep]
