"""The report as a page: the figures, the curve, nothing that runs."""

from html.parser import HTMLParser

import pytest

from sdtrain import page


class Seen(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.data = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.data.append(data.strip())


REPORT = {"recipe": "dreambooth", "steps": 7, "final_loss": 0.123456789, "rate": None, "versions": {"a": "1"}}


def test_figures_curve_and_picture():
    seen = Seen(page.render(REPORT, [(1, 3.0), (2, 1.0), (3, 2.0)], "samples/before_after.png"))
    assert "dreambooth: 7 steps" in seen.data
    assert {"0.123457", "–", "a 1", "step 1", "step 3"} <= set(seen.data)
    assert [tag for tag, _ in seen.tags].count("circle") == 3
    assert ("img", {"src": "samples/before_after.png", "alt": "samples"}) in seen.tags


@pytest.mark.parametrize("curve", [[], [(1, 2.0)], [(1, 2.0), (2, 2.0)]])
def test_any_curve(curve):
    text = page.render(REPORT, curve, None)
    assert ("Too few" in text) == (len(curve) < 2)
    assert "<img" not in text


def test_what_users_typed_does_not_run():
    text = page.render({**REPORT, "model": "<script>alert(1)</script>"}, [], '"><script>')
    assert "script" not in {tag for tag, _ in Seen(text).tags}


def test_the_mean_has_no_bias_towards_zero():
    assert page._running_mean([2.0, 2.0, 2.0]) == pytest.approx([2.0, 2.0, 2.0])
