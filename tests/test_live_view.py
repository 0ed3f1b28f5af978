"""The live view page: it shows the program's frames, on this machine only."""

from __future__ import annotations

import urllib.error
import urllib.request

import cv2
import numpy as np
import pytest

from prediction import live_view
from prediction.live_view import Page, open_view


def test_the_page_streams_the_newest_image() -> None:
    page = Page()
    try:
        assert page.address.startswith("http://127.0.0.1:")
        html = urllib.request.urlopen(page.address, timeout=5).read().decode()
        assert 'src="/stream"' in html
        page.show(np.full((20, 30, 3), 10, np.uint8))
        page.show(np.full((20, 30, 3), (200, 0, 0), np.uint8))
        with urllib.request.urlopen(page.address + "stream", timeout=5) as stream:
            assert stream.headers.get_content_type() == "multipart/x-mixed-replace"
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                head += stream.read(1)
            length = int(head.lower().partition(b"content-length: ")[2].split()[0])
            picture = cv2.imdecode(np.frombuffer(stream.read(length), np.uint8), cv2.IMREAD_COLOR_RGB)
        assert picture.shape == (20, 30, 3) and picture[10, 10, 0] > 150
        with pytest.raises(urllib.error.HTTPError):
            urllib.request.urlopen(page.address + "../secret", timeout=5)
    finally:
        page.close()


def test_closing_the_page_ends_waiting_requests() -> None:
    page = Page()
    stream = urllib.request.urlopen(page.address + "stream", timeout=5)
    page.close()
    assert stream.read() == b""


def test_without_a_window_the_page_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_window() -> None:
        raise cv2.error("no GUI in this build")

    monkeypatch.setattr(live_view, "Window", no_window)
    view = open_view()
    assert isinstance(view, Page)
    view.close()
